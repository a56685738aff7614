"""The Triton backend of the selective scan as PyTorch operators, with gradients and shapes for the compiler."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from medmamba.kernels.arguments import check_permutations
from medmamba.kernels.operators import (
    contiguous,
    gradients_like,
    needs_gradient,
    new_gradients,
    refuse_second_derivative,
    wanted,
)
from medmamba.kernels.scan import triton_launch as triton_scan
from medmamba.kernels.scan.inputs import ScanInputs
from medmamba.kernels.scan.reference import segment_resets


@torch.library.custom_op("medmamba::routed_scan_triton", mutates_args=(), device_types="cuda")
def routed_scan_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    routes: Tensor | None,
    initial_state: Tensor | None,
    segments: Tensor | None,
    softplus: bool,
    merge: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, last state and, if `save`, the states that the backward pass needs.

    Routes are checked here, where their values are known also in a compiled graph.
    """
    check_permutations(routes)
    resets = segment_resets(segments, routes, dt.shape[2])
    inputs = contiguous(x, dt, A, B, C, D, dt_bias, routes, initial_state, resets)
    y, last_state, saved_states = triton_scan.forward(triton_scan.Scan(*[*inputs, softplus, merge]))
    return y, last_state, saved_states if save else saved_states.new_empty(0)


@routed_scan_triton.register_fake
def _(x, dt, A, B, C, D, dt_bias, routes, initial_state, segments, softplus, merge, save):
    batch, length, _, channels = dt.shape
    return (
        dt.new_empty((batch, length, channels) if merge else dt.shape, dtype=torch.float32),
        dt.new_empty((batch, *A.shape), dtype=torch.float32),
        dt.new_empty(
            triton_scan.launch_of(dt, A, triton_scan.BLOCK).saved_shape if save else (0,), dtype=torch.float32
        ),
    )


@torch.library.custom_op("medmamba::routed_scan_triton_backward", mutates_args=(), device_types="cuda")
def routed_scan_triton_backward(
    dy: Tensor,
    dlast_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    routes: Tensor | None,
    initial_state: Tensor | None,
    segments: Tensor | None,
    saved_states: Tensor,
    softplus: bool,
    merge: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in the dtype of their inputs; empty where the input is None."""
    resets = segment_resets(segments, routes, dt.shape[2])
    inputs = contiguous(x, dt, A, B, C, D, dt_bias, routes, initial_state, resets)
    scan = triton_scan.Scan(*[*inputs, softplus, merge])
    dy, dlast_state = contiguous(dy, dlast_state)
    found = triton_scan.backward(dy, dlast_state, scan, saved_states)
    return gradients_like((x, dt, A, B, C, D, dt_bias, initial_state), found)


@routed_scan_triton_backward.register_fake
def _(dy, dlast_state, x, dt, A, B, C, D, dt_bias, routes, initial_state, segments, saved_states, softplus, merge):
    return new_gradients(x, dt, A, B, C, D, dt_bias, initial_state)


def _remember(ctx, inputs, output) -> None:
    *tensors, softplus, merge, save = inputs
    if not save:
        raise RuntimeError("routed_scan was called with save=False, but a gradient is wanted.")
    ctx.save_for_backward(*tensors, output[2])
    ctx.softplus, ctx.merge = softplus, merge


def _backward(ctx, dy, dlast_state, dsaved_states):
    *inputs, saved_states = ctx.saved_tensors
    dt, D, dt_bias, initial_state = inputs[1], inputs[5], inputs[6], inputs[8]
    if dy is None:
        batch, length, _, channels = dt.shape
        dy = dt.new_zeros((batch, length, channels) if ctx.merge else dt.shape, dtype=torch.float32)
    dx, ddt, dA, dB, dC, *rest = routed_scan_triton_backward(
        dy, dlast_state, *inputs, saved_states, ctx.softplus, ctx.merge
    )
    dD, ddt_bias, dinitial_state = wanted((D, dt_bias, initial_state), rest)
    return dx, ddt, dA, dB, dC, dD, ddt_bias, None, dinitial_state, None, None, None, None


routed_scan_triton.register_autograd(_backward, setup_context=_remember)
refuse_second_derivative(routed_scan_triton_backward, "routed_scan")


def run(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state, from float32 tensors; x, dt, B and C may be in half precision."""
    *inputs, z, segments, softplus, merge = scan
    tensors = contiguous(*inputs, segments)
    y, last_state, *_ = routed_scan_triton(*tensors, softplus, merge, needs_gradient(tensors))
    return (y if z is None else y * silu(z)), last_state
