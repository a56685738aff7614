"""The Triton backend of the selective scan: `medmamba::routed_scan_triton` and its backward pass.

The kernels have no gate: y is multiplied by silu(z) here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from medmamba.kernels.arguments import check_permutations
from medmamba.kernels.scan import triton_launch
from medmamba.kernels.scan.inputs import ScanInputs
from medmamba.kernels.scan.operators import ScanKernels, call_operator, scan_operators


def _saved_shape(dt: Tensor, A: Tensor) -> tuple[int, ...]:
    return triton_launch.launch_of(dt, A, triton_launch.BLOCK).saved_shape


def _forward(scan: ScanInputs, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Routes are checked here, where their values are known also in a compiled graph."""
    check_permutations(scan.routes)
    plain, last_state, saved_states = triton_launch.forward(scan)
    y = plain if scan.z is None else plain * silu(scan.z)
    if not save:
        saved_states = y.new_empty(0)
    return y, last_state, saved_states, plain if save and scan.z is not None else y.new_empty(0)


def _backward(
    dy: Tensor, dlast_state: Tensor | None, scan: ScanInputs, saved_states: Tensor, plain: Tensor
) -> tuple[Tensor | None, ...]:
    dz = None
    if scan.z is not None:
        gate = torch.sigmoid(scan.z)
        dz = dy * plain * gate * (1 + scan.z * (1 - gate))
        dy = dy * scan.z * gate
    return *triton_launch.backward(dy, dlast_state, scan, saved_states), dz


routed_scan_triton, routed_scan_triton_backward = scan_operators(
    "routed_scan_triton", "cuda", ScanKernels(_forward, _backward, _saved_shape)
)


def run(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state, from float32 tensors; x, dt, B and C may be in half precision."""
    return call_operator(routed_scan_triton, scan)
