"""The Triton backend of the selective scan: launches, the sums that finish the gradients, and the PyTorch operators.

Imported at the first call of the backend, as it needs Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from medmamba.kernels.arguments import check_permutations
from medmamba.kernels.scan import triton_kernels as kernels
from medmamba.kernels.scan.operators import call_operator, scan_operators
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


def _flags(scan: ScanInputs, resets: Tensor | None) -> dict[str, Any]:
    """What the kernels of both directions are compiled for."""
    found: dict[str, Any] = {"T": TILE, "M": TILES_PER_SAVE, "SOFTPLUS": scan.softplus, "num_warps": WARPS}
    given = {"HAS_DT_BIAS": scan.dt_bias, "HAS_ROUTES": scan.routes, "HAS_SEGMENTS": resets}
    return found | {name: tensor is not None for name, tensor in given.items()}


@dataclass(frozen=True)
class Launch:
    """Sizes of one scan and how it is cut into programs."""

    batch: int
    length: int
    K: int
    channels: int
    N: int
    block: int

    @property
    def saves(self) -> int:
        """Number of saved states."""
        return -(-self.length // (TILE * TILES_PER_SAVE))

    @property
    def blocks(self) -> int:
        """Channel blocks."""
        return -(-self.channels // self.block)

    @property
    def span_saves(self) -> int:
        """Saved states of one program: all, unless there are too few programs to fill the device."""
        programs = self.batch * self.K * self.blocks
        spans = min(self.saves, max(1, -(-WANTED_PROGRAMS // programs)))
        return -(-self.saves // spans)

    @property
    def spans(self) -> int:
        """Spans that run in parallel."""
        return -(-self.saves // self.span_saves)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Programs: channel blocks, spans, batch entries and routes."""
        return self.blocks, self.spans, self.batch * self.K

    @property
    def saved_shape(self) -> tuple[int, ...]:
        """The state before every TILES_PER_SAVE tiles."""
        return self.batch, self.K, self.saves, self.N, self.channels

    @property
    def sizes(self) -> tuple[int, ...]:
        """As the kernels take them."""
        return self.length, self.channels, self.N, self.K, self.span_saves, self.saves, self.spans


def launch_of(dt: Tensor, A: Tensor, block: int) -> Launch:
    """The launch for dt (batch, L, K, channels) and A (K, channels, N) with `block` channels per program."""
    batch, length, K, channels = dt.shape
    return Launch(batch, length, K, channels, A.shape[-1], block)


def _resets(scan: ScanInputs) -> Tensor | None:
    resets = segment_resets(scan.segments, scan.routes, scan.dt.shape[2])
    return None if resets is None else resets.contiguous()


def _given(nothing: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """`nothing` in place of None: a pointer for arguments that are not read."""
    return [nothing if tensor is None else tensor for tensor in tensors]


def _pass_spans(
    cut: Launch,
    A: Tensor,
    sum_dt: Tensor,
    values: Tensor,
    entering: Tensor | None,
    leaving: Tensor | None,
    adjoint: bool,
) -> None:
    has = {"HAS_ENTERING": entering is not None, "HAS_LEAVING": leaving is not None, "ADJOINT": adjoint}
    pointers, sizes = _given(values, entering, leaving), (cut.channels, cut.N, cut.K, cut.spans)
    grid = (cut.blocks, cut.N, cut.batch * cut.K)
    kernels.pass_spans[grid](A, sum_dt, values, *pointers, *sizes, BD=cut.block, **has, num_warps=WARPS)


def forward(scan: ScanInputs, save: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `scan_operators` takes it. Routes are checked here, where their values are known also in a compiled graph."""
    check_permutations(scan.routes)
    one = scan.A.shape[-1] == 1
    kernel, block = (kernels.scan_forward_one, ONE_BLOCK) if one else (kernels.scan_forward, FORWARD_BLOCK)
    cut = launch_of(scan.dt, scan.A, block)
    saved_states = scan.dt.new_empty(cut.saved_shape, dtype=torch.float32)
    span_states = saved_states.new_empty(cut.batch, cut.K, cut.spans, cut.N, cut.channels)
    y = saved_states.new_empty(scan.dt.shape)
    resets = _resets(scan)
    pointers = _given(saved_states, *scan[:8], resets)  # x to routes
    flags = _flags(scan, resets) | {
        "BD": block,
        "HAS_D": scan.D is not None,
        "X_PER_ROUTE": scan.x.dim() == 4,
        "ONE": one,
    }
    if cut.spans > 1:
        sum_dt = saved_states.new_empty(cut.batch, cut.K, cut.spans, cut.channels)
        kernel[cut.grid](*pointers, span_states, saved_states, sum_dt, y, *cut.sizes, **flags, KEEP_OUTPUT=False)
        _pass_spans(cut, scan.A, sum_dt, span_states, scan.initial_state, None, adjoint=False)
    elif scan.initial_state is None:
        span_states.zero_()
    else:
        span_states.copy_(scan.initial_state.transpose(-1, -2).unsqueeze(2))
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
    cut = launch_of(scan.dt, scan.A, block)
    carries = saved_states.new_empty(cut.batch, cut.K, cut.spans, cut.N, cut.channels)
    resets = _resets(scan)
    flags = _flags(scan, resets) | {"BD": block, "DY_PER_ROUTE": not scan.merge}
    optional = _given(saved_states, scan.dt_bias, scan.routes, resets)
    dinitial_state = None if scan.initial_state is None else saved_states.new_empty(scan.initial_state.shape)
    if cut.spans > 1 or dinitial_state is not None:
        sum_dt = saved_states.new_empty(cut.batch, cut.K, cut.spans, cut.channels)
        wide = (-(-cut.channels // SPANS_BLOCK), *cut.grid[1:])
        arguments = (scan.dt, scan.A, scan.C, *optional, dy, carries, sum_dt, *cut.sizes)
        kernels.adjoint_spans[wide](*arguments, **flags | {"BD": SPANS_BLOCK})
        _pass_spans(cut, scan.A, sum_dt, carries, dlast_state, dinitial_state, adjoint=True)
    elif dlast_state is None:
        carries.zero_()
    else:
        carries.copy_(dlast_state.transpose(-1, -2).unsqueeze(2))
    dx, ddt = (saved_states.new_empty(scan.dt.shape) for _ in range(2))
    dA = saved_states.new_empty(carries.shape)
    dB, dC = (saved_states.new_empty(cut.blocks, *scan.B.shape) for _ in range(2))
    dD, ddt_bias = (saved_states.new_empty(cut.batch, cut.K, cut.spans, cut.channels) for _ in range(2))
    if one:
        flags |= {"T": TILE // ONE_SHORTER, "M": TILES_PER_SAVE * ONE_SHORTER}
    scratch = saved_states.new_empty(cut.batch, cut.K, cut.spans, flags["M"], cut.N, cut.channels)
    kernel = kernels.scan_backward_one if one else kernels.scan_backward
    kernel[cut.grid](
        *(scan.x, scan.dt, scan.A, scan.B, scan.C, *_given(saved_states, scan.D), *optional, saved_states, carries, dy),
        *(dx, ddt, dA, dB, dC, dD, ddt_bias, scratch, *cut.sizes, cut.blocks),
        **flags,
        HAS_D=scan.D is not None,
        X_PER_ROUTE=scan.x.dim() == 4,
        ONE=one,
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
    "routed_scan_triton", "cuda", forward, backward, lambda dt, A: launch_of(dt, A, BLOCK).saved_shape
)


def run(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state, from float32 tensors; x, dt, B and C may be in half precision."""
    return call_operator(routed_scan_triton, scan)
