"""The C++ backend of the selective scan as PyTorch operators, with gradients and shapes for the compiler.

`medmamba::routed_scan_cpp` and `medmamba::routed_scan_cpp_backward` take contiguous float32 tensors of the shapes
given in `medmamba.kernels.routed_scan`. The library is loaded at the first call, never at import.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medmamba.kernels import library as lib
from medmamba.kernels.operators import contiguous, needs_gradient, new_gradients, refuse_second_derivative, wanted
from medmamba.kernels.scan.inputs import ScanInputs

# Sizes that csrc/abi.h fixes: positions per saved state, and the padding of channels in `saved_states`.
TILE = 32
PAD = 16

_STATUS = {
    1: "out of memory for scratch space",
    2: "a row of `routes` is not a permutation of 0..L-1: every route must visit every position once",
    3: "a size is zero or too large",
    4: "this processor cannot run the chosen instruction set",
}


def _raise_status(status: int) -> None:
    if status == 1:
        raise MemoryError(f"routed_scan: {_STATUS[1]}.")
    if status:
        raise ValueError(f"routed_scan: {_STATUS.get(status, f'unknown status {status}')}.")


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _if_any(tensor: Tensor) -> int | None:
    return tensor.data_ptr() if tensor.numel() else None


def _arguments(
    x: Tensor, dt: Tensor, A: Tensor, *others: Tensor | None, softplus: bool, merge: bool
) -> lib.ScanArguments:
    """The eleven tensors of the operators, in their order."""
    batch, length, K, channels = dt.shape
    return lib.ScanArguments(
        *(batch, length, K, channels, A.shape[-1]),
        *(softplus, merge, x.dim() == 4, torch.get_num_threads()),
        *(_at(tensor) for tensor in (x, dt, A, *others)),
    )


def _saved_shape(dt: Tensor, A: Tensor) -> tuple[int, ...]:
    batch, length, K, channels = dt.shape
    return (batch, K, (length + TILE - 1) // TILE, (channels + PAD - 1) // PAD * PAD, A.shape[-1])


def _output_shape(dt: Tensor, merge: bool) -> tuple[int, ...]:
    batch, length, K, channels = dt.shape
    return (batch, length, channels) if merge else (batch, length, K, channels)


def _state_shape(dt: Tensor, A: Tensor) -> tuple[int, ...]:
    return (dt.shape[0], *A.shape)


@torch.library.custom_op("medmamba::routed_scan_cpp", mutates_args=(), device_types="cpu")
def routed_scan_cpp(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    routes: Tensor | None,
    initial_state: Tensor | None,
    z: Tensor | None,
    segments: Tensor | None,
    softplus: bool,
    merge: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, last state and, if `save`, what the backward pass needs: states at the tile starts, y before the gate."""
    inputs = contiguous(x, dt, A, B, C, D, dt_bias, routes, initial_state, z, segments)
    y = dt.new_empty(_output_shape(dt, merge))
    last_state = dt.new_empty(_state_shape(dt, A))
    saved_states = dt.new_empty(_saved_shape(dt, A) if save else (0,))
    plain = dt.new_empty(y.shape if save and z is not None else (0,))
    arguments = _arguments(*inputs, softplus=softplus, merge=merge)
    arguments.y, arguments.last_state = y.data_ptr(), last_state.data_ptr()
    arguments.saved_states, arguments.plain = _if_any(saved_states), _if_any(plain)
    _raise_status(lib.cpu_library().mm_scan_forward(arguments))
    return y, last_state, saved_states, plain


@routed_scan_cpp.register_fake
def _(x, dt, A, B, C, D, dt_bias, routes, initial_state, z, segments, softplus, merge, save):
    return (
        dt.new_empty(_output_shape(dt, merge)),
        dt.new_empty(_state_shape(dt, A)),
        dt.new_empty(_saved_shape(dt, A) if save else (0,)),
        dt.new_empty(_output_shape(dt, merge) if save and z is not None else (0,)),
    )


@torch.library.custom_op("medmamba::routed_scan_cpp_backward", mutates_args=(), device_types="cpu")
def routed_scan_cpp_backward(
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
    z: Tensor | None,
    segments: Tensor | None,
    saved_states: Tensor,
    plain: Tensor,
    softplus: bool,
    merge: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, dt_bias, initial_state, z; empty where the input is None."""
    inputs = contiguous(x, dt, A, B, C, D, dt_bias, routes, initial_state, z, segments)
    dy, dlast_state = contiguous(dy, dlast_state)
    gradients = new_gradients(x, dt, A, B, C, D, dt_bias, initial_state, z)
    arguments = lib.ScanGradients(_arguments(*inputs, softplus=softplus, merge=merge))
    arguments.s.saved_states, arguments.s.plain = saved_states.data_ptr(), _if_any(plain)
    arguments.dy, arguments.dlast_state = dy.data_ptr(), _at(dlast_state)
    names = ("dx", "ddt", "dA", "dB", "dC", "dD", "ddt_bias", "dinitial_state", "dz")
    for name, gradient in zip(names, gradients, strict=True):
        setattr(arguments, name, _if_any(gradient))
    _raise_status(lib.cpu_library().mm_scan_backward(arguments))
    return gradients


@routed_scan_cpp_backward.register_fake
def _(
    dy,
    dlast_state,
    x,
    dt,
    A,
    B,
    C,
    D,
    dt_bias,
    routes,
    initial_state,
    z,
    segments,
    saved_states,
    plain,
    softplus,
    merge,
):
    return new_gradients(x, dt, A, B, C, D, dt_bias, initial_state, z)


def _remember(ctx, inputs, output) -> None:
    *tensors, softplus, merge, save = inputs
    if not save:
        raise RuntimeError("routed_scan was called with save=False, but a gradient is wanted.")
    ctx.save_for_backward(*tensors, *output[2:])
    ctx.softplus, ctx.merge = softplus, merge


def _backward(ctx, dy, dlast_state, dsaved_states, dplain):
    saved = ctx.saved_tensors  # the eleven inputs, then what the forward pass saved
    dt, D, dt_bias, initial_state, z = (saved[i] for i in (1, 5, 6, 8, 9))
    if dy is None:
        dy = dt.new_zeros(_output_shape(dt, ctx.merge))
    dx, ddt, dA, dB, dC, *rest = routed_scan_cpp_backward(dy, dlast_state, *saved, ctx.softplus, ctx.merge)
    dD, ddt_bias, dinitial_state, dz = wanted((D, dt_bias, initial_state, z), rest)
    return dx, ddt, dA, dB, dC, dD, ddt_bias, None, dinitial_state, dz, None, None, None, None


routed_scan_cpp.register_autograd(_backward, setup_context=_remember)
refuse_second_derivative(routed_scan_cpp_backward, "routed_scan")


def run(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state, from float32 tensors on the CPU."""
    *inputs, softplus, merge = scan
    tensors = contiguous(*inputs)
    y, last_state, *_ = routed_scan_cpp(*tensors, softplus, merge, needs_gradient(tensors))
    return y, last_state
