"""The Triton backend of the selective scan: launches, the sums that finish the gradients, and the PyTorch operators.

Imported at the first call of the backend, as it needs Triton.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu
from triton import cdiv

from medmamba.kernels.arguments import check_permutations
from medmamba.kernels.scan import triton_kernels as kernels
from medmamba.kernels.scan.compiled import scan_operators
from medmamba.kernels.scan.reference import ScanInputs, segment_resets

# Positions per tile, tiles per saved state, and channels per program: one warp, one lane per channel, the positions of
# a tile in its registers. Tiles of 16 make the backward pass spill.
TILE = 8
TILES_PER_SAVE = 8
BLOCK = 32
# With one state per channel: four channels per lane, read as one vector; the backward pass has shorter tiles, more of
# them between two saved states, because it keeps more of each in registers.
ONE_BLOCK = 128
ONE_SHORTER = 2
SPANS_BLOCK = 128  # of the adjoint's first pass, which spills a register with 32
FORWARD_BLOCK = 64  # two channels per lane share the loads of B and C; the backward pass would spill
WARPS = 1
# Programs that fill a large device (132 multiprocessors, 16 warps each); below it routes are cut into spans.
WANTED_PROGRAMS = 2112


def saved_shape(dt: Tensor, A: Tensor) -> tuple[int, ...]:
    """Shape of the saved states: the state before every TILES_PER_SAVE tiles."""
    batch, length, K, channels = dt.shape
    return batch, K, cdiv(length, TILE * TILES_PER_SAVE), A.shape[-1], channels


class Launch:
    """How the scan of dt (batch, L, K, channels) and A (K, channels, N) is cut into programs of `block` channels."""

    def __init__(self, dt: Tensor, A: Tensor, block: int) -> None:
        batch, K, self.saves, self.N, self.channels = saved_shape(dt, A)
        self.K, self.block, self.blocks = K, block, cdiv(self.channels, block)
        # Spans that run in parallel: one, unless there are too few programs to fill the device.
        spans = min(self.saves, max(1, cdiv(WANTED_PROGRAMS, batch * K * self.blocks)))
        self.span_saves = cdiv(self.saves, spans)
        self.spans = cdiv(self.saves, self.span_saves)
        self.grid = (self.blocks, self.spans, batch * K)
        self.per_span = (batch, K, self.spans)
        # Arguments of the kernels.
        self.sizes = (dt.shape[1], self.channels, self.N, K, self.span_saves, self.saves, self.spans)


def _flags(scan: ScanInputs, block: int) -> dict[str, Any]:
    """Compile-time constants of the forward and backward kernels, such as which arguments are None."""
    return {"T": TILE, "M": TILES_PER_SAVE, "BD": block, "SOFTPLUS": scan.softplus, "num_warps": WARPS}


def _resets(scan: ScanInputs) -> Tensor | None:
    resets = segment_resets(scan.segments, scan.routes, scan.dt.shape[2])
    return None if resets is None else resets.contiguous()


def _pass_spans(
    cut: Launch,
    A: Tensor,
    steps: Tensor,
    values: Tensor,
    entering: Tensor | None,
    leaving: Tensor | None,
    adjoint: bool,
) -> None:
    grid, sizes = (cut.blocks, cut.N, cut.grid[2]), (cut.channels, cut.N, cut.K, cut.spans)
    flags = {"BD": cut.block, "ADJOINT": adjoint, "num_warps": WARPS}
    kernels.pass_spans[grid](A, steps, values, entering, leaving, *sizes, **flags)


def forward(scan: ScanInputs, save: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `scan_operators` takes it. Routes are checked here, where their values are known also in a compiled graph."""
    check_permutations(scan.routes)
    one = scan.A.shape[-1] == 1
    kernel, block = (kernels.scan_forward_one, ONE_BLOCK) if one else (kernels.scan_forward, FORWARD_BLOCK)
    cut = Launch(scan.dt, scan.A, block)
    saved_states = scan.dt.new_empty(saved_shape(scan.dt, scan.A), dtype=torch.float32)
    span_states = saved_states.new_empty(*cut.per_span, cut.N, cut.channels)
    y = saved_states.new_empty(scan.dt.shape)
    pointers = (*scan[:8], _resets(scan))  # x to routes
    flags = _flags(scan, block) | {"X_PER_ROUTE": scan.x.dim() == 4, "ONE": one}
    if cut.spans > 1:
        sum_dt = saved_states.new_empty(*cut.per_span, cut.channels)
        kernel[cut.grid](*pointers, span_states, saved_states, sum_dt, y, *cut.sizes, **flags, KEEP_OUTPUT=False)
        _pass_spans(cut, scan.A, sum_dt, span_states, scan.initial_state, None, adjoint=False)
    else:
        span_states[:] = 0 if scan.initial_state is None else scan.initial_state.transpose(-1, -2).unsqueeze(2)
    kernel[cut.grid](*pointers, span_states, saved_states, saved_states, y, *cut.sizes, **flags, KEEP_OUTPUT=True)
    last_state = span_states[:, :, -1].transpose(-1, -2).contiguous()
    plain, nothing = y.sum(2) if scan.merge else y, y.new_empty(0)
    saved_states = saved_states if save else nothing
    if scan.z is None:
        return plain, last_state, saved_states, nothing
    return plain * silu(scan.z), last_state, saved_states, plain if save else nothing


def backward(
    dy: Tensor, dlast_state: Tensor | None, scan: ScanInputs, saved_states: Tensor, plain: Tensor
) -> tuple[Tensor | None, ...]:
    """As `scan_operators` takes it, in float32. The kernels have no gate."""
    dz = None
    if scan.z is not None:
        gate = torch.sigmoid(scan.z)
        dz = dy * plain * gate * (1 + scan.z * (1 - gate))
        dy = dy * scan.z * gate
    one = scan.A.shape[-1] == 1
    block = ONE_BLOCK if one else BLOCK
    cut = Launch(scan.dt, scan.A, block)
    carries = saved_states.new_empty(*cut.per_span, cut.N, cut.channels)
    flags = _flags(scan, block) | {"DY_PER_ROUTE": not scan.merge}
    optional = (scan.dt_bias, scan.routes, _resets(scan))
    dinitial_state = None if scan.initial_state is None else saved_states.new_empty(scan.initial_state.shape)
    if cut.spans > 1 or dinitial_state is not None:
        sum_dt = saved_states.new_empty(*cut.per_span, cut.channels)
        wide = (cdiv(cut.channels, SPANS_BLOCK), *cut.grid[1:])
        arguments = (scan.dt, scan.A, scan.C, *optional, dy, carries, sum_dt, *cut.sizes)
        kernels.adjoint_spans[wide](*arguments, **flags | {"BD": SPANS_BLOCK})
        _pass_spans(cut, scan.A, sum_dt, carries, dlast_state, dinitial_state, adjoint=True)
    else:
        carries[:] = 0 if dlast_state is None else dlast_state.transpose(-1, -2).unsqueeze(2)
    dx, ddt = (saved_states.new_empty(scan.dt.shape) for _ in range(2))
    dA = saved_states.new_empty(carries.shape)
    dB, dC = (saved_states.new_empty(cut.blocks, *scan.B.shape) for _ in range(2))
    dD, ddt_bias = (saved_states.new_empty(*cut.per_span, cut.channels) for _ in range(2))
    if one:
        flags |= {"T": TILE // ONE_SHORTER, "M": TILES_PER_SAVE * ONE_SHORTER}
    scratch = saved_states.new_empty(*cut.per_span, flags["M"], cut.N, cut.channels)
    kernel = kernels.scan_backward_one if one else kernels.scan_backward
    kernel[cut.grid](
        *(*scan[:6], *optional, saved_states, carries, dy),  # x to D
        *(dx, ddt, dA, dB, dC, dD, ddt_bias, scratch, *cut.sizes, cut.blocks),
        **flags,
        **{"X_PER_ROUTE": scan.x.dim() == 4, "ONE": one},
    )
    return (
        dx if scan.x.dim() == 4 else dx.sum(2),
        ddt,
        dA.sum((0, 2)).transpose(-1, -2),
        dB.sum(0),
        dC.sum(0),
        None if scan.D is None else dD.sum((0, 2)),
        None if scan.dt_bias is None else ddt_bias.sum((0, 2)),
        None,
        dinitial_state,
        dz,
        None,
    )


routed_scan_triton, routed_scan_triton_backward = scan_operators(
    "routed_scan_triton", "cuda", forward, backward, saved_shape
)
