"""A compiled selective scan as two PyTorch operators: gradients, and shapes for the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.library import CustomOpDef

from medmamba.kernels.operators import (
    contiguous,
    gradients_like,
    needs_gradient,
    new_gradients,
    none_without_input,
    refuse_second_derivative,
)
from medmamba.kernels.scan.inputs import ScanInputs

_KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool"}
_INPUTS = ", ".join(f"{_KINDS[kind]} {name}" for name, kind in get_type_hints(ScanInputs).items())
_DIFFERENTIABLE = ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_state", "z")


def output_shape(scan: ScanInputs) -> tuple[int, ...]:
    """Shape of y."""
    batch, length, K, channels = scan.dt.shape
    return (batch, length, channels) if scan.merge else (batch, length, K, channels)


def scan_operators(
    name: str,
    device: str,
    forward_kernels: Callable[[ScanInputs, bool], tuple[Tensor, Tensor, Tensor, Tensor]],
    backward_kernels: Callable[[Tensor, Tensor | None, ScanInputs, Tensor, Tensor], tuple[Tensor | None, ...]],
    saved_shape: Callable[[Tensor, Tensor], tuple[int, ...]],
) -> tuple[CustomOpDef, CustomOpDef]:
    """`medmamba::NAME`, which takes `ScanInputs` and the flag `save`, and `medmamba::NAME_backward`.

    What a backend computes, on contiguous tensors:
        forward_kernels: from the inputs and the flag `save` y, the last state, the saved states and y before the gate;
            the latter two are empty without the flag, and y before the gate without a gate as well.
        backward_kernels: from dy, dlast_state, the inputs, the saved states and y before the gate the gradients of x,
            dt, A, B, C, D, dt_bias, initial_state and z; not read where the input is None.
        saved_shape: shape of the saved states from dt and A.
    """

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *inputs, save = arguments
        return forward_kernels(_in_order(inputs), save)

    def backward(dy: Tensor, dlast_state: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
        *inputs, saved_states, plain = arguments
        scan = _in_order(inputs)
        dy, dlast_state = contiguous(dy, dlast_state)
        return gradients_like(_differentiable(scan), backward_kernels(dy, dlast_state, scan, saved_states, plain))

    def forward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
        *inputs, save = arguments
        scan = ScanInputs(*inputs)
        shapes = (
            output_shape(scan),
            (scan.dt.shape[0], *scan.A.shape),
            saved_shape(scan.dt, scan.A) if save else (0,),
            output_shape(scan) if save and scan.z is not None else (0,),
        )
        return tuple(scan.dt.new_empty(shape, dtype=torch.float32) for shape in shapes)

    def backward_shapes(dy: Tensor, dlast_state: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
        return new_gradients(*_differentiable(ScanInputs(*arguments[:-2])))

    def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, softplus, merge, save = inputs
        if not save:
            raise RuntimeError("routed_scan was called with save=False, but a gradient is needed.")
        ctx.save_for_backward(*tensors, *output[2:])
        ctx.flags = softplus, merge

    def differentiate(ctx: Any, dy: Tensor | None, dlast_state: Tensor | None, *_unused: Any) -> tuple[Any, ...]:
        *tensors, saved_states, plain = ctx.saved_tensors
        scan = ScanInputs(*tensors, *ctx.flags)
        if dy is None:
            dy = scan.dt.new_zeros(output_shape(scan), dtype=torch.float32)
        gradients = gradient_operator(dy, dlast_state, *scan, saved_states, plain)
        found = dict(zip(_DIFFERENTIABLE, none_without_input(_differentiable(scan), gradients), strict=True))
        return *(found.get(name) for name in ScanInputs._fields), None

    define = torch.library.custom_op
    four, nine = (", ".join(["Tensor"] * count) for count in (4, len(_DIFFERENTIABLE)))
    of_forward = f"({_INPUTS}, bool save) -> ({four})"
    of_backward = f"(Tensor dy, Tensor? dlast_state, {_INPUTS}, Tensor saved_states, Tensor plain) -> ({nine})"
    operator = define(f"medmamba::{name}", forward, mutates_args=(), device_types=device, schema=of_forward)
    gradient_operator = define(
        f"medmamba::{name}_backward", backward, mutates_args=(), device_types=device, schema=of_backward
    )
    operator.register_fake(forward_shapes)
    gradient_operator.register_fake(backward_shapes)
    operator.register_autograd(differentiate, setup_context=remember)
    refuse_second_derivative(gradient_operator, "routed_scan")
    return operator, gradient_operator


def call_operator(operator: CustomOpDef, scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state; states are saved only if a gradient may be needed."""
    scan = _in_order(scan)
    y, last_state, *_ = operator(*scan, needs_gradient(scan[:-2]))
    return y, last_state


def _in_order(inputs: Any) -> ScanInputs:
    *tensors, softplus, merge = inputs
    return ScanInputs._make([*contiguous(*tensors), softplus, merge])


def _differentiable(scan: ScanInputs) -> list[Tensor | None]:
    return [getattr(scan, name) for name in _DIFFERENTIABLE]
