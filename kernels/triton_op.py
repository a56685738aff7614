"""The Triton backend of the selective scan as PyTorch operators, with gradients and shapes for the compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from medmamba.kernels import triton_scan
from medmamba.kernels.reference import passes_on


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


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
    """Output, last state and, if `save`, the states that the backward pass needs. Routes must be permutations."""
    goes_on = passes_on(segments, routes, dt.shape[2])
    inputs = _contiguous(x, dt, A, B, C, D, dt_bias, routes, initial_state, goes_on)
    y, last, states = triton_scan.forward(*inputs, softplus, merge)  # type: ignore[arg-type, call-arg]
    return y, last, states if save else states.new_empty(0)


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
    dlast: Tensor | None,
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
    states: Tensor,
    softplus: bool,
    merge: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in the dtype of their inputs; empty where the input is None."""
    goes_on = passes_on(segments, routes, dt.shape[2])
    inputs = _contiguous(x, dt, A, B, C, D, dt_bias, routes, initial_state, goes_on)
    dy, dlast = _contiguous(dy, dlast)  # type: ignore[assignment]
    found = triton_scan.backward(dy, dlast, *inputs, states, softplus, merge)  # type: ignore[arg-type, call-arg]
    likes = (x, dt, A, B, C, D, dt_bias, initial_state)
    return tuple(  # type: ignore[return-value]
        x.new_empty(0) if like is None or gradient is None else gradient.to(like.dtype).contiguous()
        for gradient, like in zip(found, likes, strict=True)
    )


@routed_scan_triton_backward.register_fake
def _(dy, dlast, x, dt, A, B, C, D, dt_bias, routes, initial_state, segments, states, softplus, merge):
    likes = (x, dt, A, B, C, D, dt_bias, initial_state)
    return tuple(x.new_empty(0) if like is None else like.new_empty(like.shape) for like in likes)


def _remember(ctx, inputs, output) -> None:
    *tensors, softplus, merge, save = inputs
    if not save:
        raise RuntimeError("routed_scan was called with save=False, but a gradient is wanted.")
    ctx.save_for_backward(*tensors, output[2])
    ctx.softplus, ctx.merge = softplus, merge


def _backward(ctx, dy, dlast, dstates):
    *inputs, states = ctx.saved_tensors
    dt, D, dt_bias, initial_state = inputs[1], inputs[5], inputs[6], inputs[8]
    if dy is None:
        batch, length, _, channels = dt.shape
        dy = dt.new_zeros((batch, length, channels) if ctx.merge else dt.shape, dtype=torch.float32)
    gradients = routed_scan_triton_backward(dy, dlast, *inputs, states, ctx.softplus, ctx.merge)
    dx, ddt, dA, dB, dC, dD, dbias, dinitial = gradients
    dD, dbias, dinitial = (
        None if value is None else gradient
        for value, gradient in ((D, dD), (dt_bias, dbias), (initial_state, dinitial))
    )
    return dx, ddt, dA, dB, dC, dD, dbias, None, dinitial, None, None, None, None


routed_scan_triton.register_autograd(_backward, setup_context=_remember)


def _no_second_gradient(ctx, *gradients):
    raise RuntimeError(
        "routed_scan has no second derivative in its compiled form. "
        'Use backend="torch" or backend="reference" where gradients of gradients are needed.'
    )


routed_scan_triton_backward.register_autograd(_no_second_gradient)
