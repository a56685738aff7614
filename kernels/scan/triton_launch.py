"""The Triton backend of the selective scan: launches, the sums that finish the gradients, and the PyTorch operators.

Imported at the first call of the backend, as it needs Triton.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu
from triton import cdiv

from medmamba.kernels.arguments import check_permutations
from medmamba.kernels.scan import triton_kernels as kernels
from medmamba.kernels.scan.compiled import scan_operators
from medmamba.kernels.scan.reference import ScanInputs, segment_resets

# Positions between two saved states; of a tile in the forward and in the backward pass, which keeps more of each
# position in registers; channels of a program, which is one warp, and with one state per channel, when four channels of
# a lane are read as one vector.
SAVED = 64
FORWARD_TILE = 8
BACKWARD_TILE = 4
BLOCK = 64
ONE_BLOCK = 128
WARPS = 1
# Registers allow eight warps on a multiprocessor. Routes are cut into spans, which costs a pass more, only where there
# are fewer programs than half of that.
PROGRAMS = 8
ENOUGH_PROGRAMS = 4
MULTIPROCESSORS = 132
"""Of the device, where it cannot be asked (an H100 or H200)."""
CHAIN = 8
"""Spans whose memory the chain waits for at once."""


def saved_shape(dt: Tensor, A: Tensor) -> tuple[int, ...]:
    """Shape of the saved states: the state before every SAVED positions."""
    batch, length, K, channels = dt.shape
    return batch, K, cdiv(length, SAVED), A.shape[-1], channels


def block_of(channels: int, N: int) -> int:
    """Channels of a program. Two of them per lane share the loads of B and C and the sums over channels."""
    return ONE_BLOCK if N == 1 else BLOCK // 2 if channels <= BLOCK // 2 else BLOCK


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of a device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


class Launch:
    """How the scan of dt (batch, L, K, channels) and A (K, channels, N) is cut into programs."""

    def __init__(self, dt: Tensor, A: Tensor) -> None:
        batch, K, self.saves, self.N, self.channels = saved_shape(dt, A)
        self.K, self.block = K, block_of(self.channels, self.N)
        self.blocks = cdiv(self.channels, self.block)
        programs, processors = batch * K * self.blocks, multiprocessors(dt.device)
        spans = 1 if programs >= ENOUGH_PROGRAMS * processors else cdiv(PROGRAMS * processors, programs)
        spans = min(self.saves, spans)
        self.span_saves = cdiv(self.saves, spans)
        self.spans = cdiv(self.saves, self.span_saves)
        self.grid = (programs, self.spans)
        self.per_span = (batch, K, self.spans)
        # Arguments of the kernels.
        self.sizes = (dt.shape[1], self.channels, self.N, K, self.span_saves, self.saves, self.spans, self.blocks)

    def flags(self, scan: ScanInputs, tile: int) -> dict[str, Any]:
        """Compile-time constants of the forward and backward kernels."""
        return {"T": tile, "M": SAVED // tile, "BD": self.block, "SOFTPLUS": scan.softplus, "num_warps": WARPS}


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
    grid, sizes = (cut.grid[0], cut.N), (cut.channels, cut.N, cut.K, cut.spans, cut.blocks)
    flags = {"BD": cut.block, "ADJOINT": adjoint, "TOGETHER": CHAIN, "num_warps": WARPS}
    kernels.pass_spans[grid](A, steps, values, entering, leaving, *sizes, **flags)


def forward(scan: ScanInputs, save: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `scan_operators` takes it. Routes are checked here, where their values are known also in a compiled graph."""
    check_permutations(scan.routes)
    one = scan.A.shape[-1] == 1
    kernel = kernels.scan_forward_one if one else kernels.scan_forward
    A = scan.A.transpose(-1, -2).contiguous()
    cut = Launch(scan.dt, scan.A)
    saved_states = scan.dt.new_empty(saved_shape(scan.dt, scan.A), dtype=torch.float32)
    span_states = saved_states.new_empty(*cut.per_span, cut.N, cut.channels)
    y = saved_states.new_empty(scan.dt.shape)
    pointers = (scan.x, scan.dt, A, *scan[3:8], _resets(scan))  # x to routes
    flags = cut.flags(scan, FORWARD_TILE) | {"X_PER_ROUTE": scan.x.dim() == 4, "ONE": one}
    if cut.spans > 1:
        sum_dt = saved_states.new_empty(*cut.per_span, cut.channels)
        kernel[cut.grid](*pointers, span_states, saved_states, sum_dt, y, *cut.sizes, **flags, KEEP_OUTPUT=False)
        _pass_spans(cut, A, sum_dt, span_states, scan.initial_state, None, adjoint=False)
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
    A = scan.A.transpose(-1, -2).contiguous()
    cut = Launch(scan.dt, scan.A)
    carries = saved_states.new_empty(*cut.per_span, cut.N, cut.channels)
    per_route = {"DY_PER_ROUTE": not scan.merge}
    optional = (scan.dt_bias, scan.routes, _resets(scan))
    dinitial_state = None if scan.initial_state is None else saved_states.new_empty(scan.initial_state.shape)
    if cut.spans > 1 or dinitial_state is not None:
        sum_dt = saved_states.new_empty(*cut.per_span, cut.channels)
        arguments = (scan.dt, A, scan.C, *optional, dy, carries, sum_dt, *cut.sizes)
        kernels.adjoint_spans[cut.grid](*arguments, **cut.flags(scan, FORWARD_TILE), **per_route)
        _pass_spans(cut, A, sum_dt, carries, dlast_state, dinitial_state, adjoint=True)
    else:
        carries[:] = 0 if dlast_state is None else dlast_state.transpose(-1, -2).unsqueeze(2)
    dx, ddt = (saved_states.new_empty(scan.dt.shape) for _ in range(2))
    dA = saved_states.new_empty(carries.shape)
    dB, dC = (saved_states.new_empty(cut.blocks, *scan.B.shape) for _ in range(2))
    dD, ddt_bias = (saved_states.new_empty(*cut.per_span, cut.channels) for _ in range(2))
    flags = cut.flags(scan, BACKWARD_TILE) | per_route
    scratch = saved_states.new_empty(*cut.per_span, flags["M"], cut.N, cut.channels)
    kernel = kernels.scan_backward_one if one else kernels.scan_backward
    kernel[cut.grid](
        *(scan.x, scan.dt, A, *scan[3:6], *optional, saved_states, carries, dy),  # x to D
        *(dx, ddt, dA, dB, dC, dD, ddt_bias, scratch, *cut.sizes),
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
