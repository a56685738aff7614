"""PyTorch operators with gradients, made from the forward and backward functions of a compiled backend."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.library import CustomOpDef


def contiguous(values: Iterable[Any]) -> list[Any]:
    """The values, tensors made contiguous."""
    return [value.contiguous() if isinstance(value, Tensor) else value for value in values]


def launching_on(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device and its stream, whatever its tensors': make it that of this one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def needs_gradient(values: Iterable[Any]) -> bool:
    """Whether autograd is enabled and one of the values is a tensor that requires a gradient."""
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def new_gradients(inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """A gradient tensor per input; empty for None and integers, because operators cannot return None."""
    like = next(value for value in inputs if value is not None)
    return [value.new_empty(value.shape) if _differentiable(value) else like.new_empty(0) for value in inputs]


def _differentiable(value: Tensor | None) -> TypeGuard[Tensor]:
    return value is not None and value.is_floating_point()


def define_operator(
    function: str,
    name: str,
    inputs: str,
    forward: Callable[..., Any],
    backward: Callable[..., Sequence[Tensor | None]],
    shapes: Callable[..., Any],
    *,
    devices: str | Sequence[str],
    outputs: int,
    kept: int = 0,
) -> tuple[CustomOpDef, CustomOpDef]:
    """The operators `medmamba::NAME`, which has a gradient, and `medmamba::NAME_backward`, which has none.

    Arguments:
        function: the public function, for messages.
        inputs: the schema of the inputs, tensors before all others.
        forward: from the inputs, contiguous, to the outputs: one tensor, or `outputs` of them.
        backward: from the gradient of each output, the inputs and the last `kept` outputs, which have no gradient, to
            the gradient of each tensor among the inputs; entries for None and integers are ignored. The gradient of
            the first output is always given, that of another may be None.
        shapes: `forward` for tensors without data.
    """
    tensors = inputs.count("Tensor")
    seen = outputs - kept  # outputs whose gradients the backward pass takes
    of_inputs = slice(seen, seen + tensors)

    def run_forward(*arguments: Any) -> Any:
        with launching_on(arguments[0]):
            return forward(*contiguous(arguments))

    def run_backward(*arguments: Any) -> list[Tensor]:
        with launching_on(arguments[0]):
            found = backward(*contiguous(arguments))
        gradients = zip(arguments[of_inputs], found, strict=True)
        empty = arguments[0].new_empty(0)
        return [
            empty.clone() if gradient is None or not _differentiable(value) else gradient.to(value.dtype).contiguous()
            for value, gradient in gradients
        ]

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        every = (output,) if outputs == 1 else output
        ctx.save_for_backward(*inputs[:tensors], *every[seen:])
        ctx.options, ctx.shape = inputs[tensors:], every[0].shape

    def differentiate(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        every = ctx.saved_tensors  # read once, as activation checkpointing requires
        given, saved = every[:tensors], every[tensors:]
        first, *others = cotangents[:seen]
        if first is None:
            first = given[0].new_zeros(ctx.shape, dtype=torch.float32)
        gradients = gradient_operator(first, *others, *given, *ctx.options, *saved)
        found = [g if _differentiable(value) else None for g, value in zip(gradients, given, strict=True)]
        return *found, *(None for _option in ctx.options)

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{function} has no second derivative in its compiled form. "
            'Use backend="torch" or backend="reference" where gradients of gradients are needed.'
        )

    def define(name: str, run: Callable[..., Any], inputs: list[str], count: int) -> CustomOpDef:
        result = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
        schema = f"({', '.join(inputs)}) -> {result}"
        return torch.library.custom_op(f"medmamba::{name}", run, mutates_args=(), device_types=devices, schema=schema)

    cotangents = ["Tensor d0", *(f"Tensor? d{index}" for index in range(1, seen))]
    saved = [f"Tensor saved{index}" for index in range(kept)]
    operator = define(name, run_forward, [inputs], outputs)
    gradient_operator = define(f"{name}_backward", run_backward, [*cotangents, inputs, *saved], tensors)
    operator.register_fake(shapes)
    gradient_operator.register_fake(lambda *arguments: new_gradients(arguments[of_inputs]))
    operator.register_autograd(differentiate, setup_context=remember)
    gradient_operator.register_autograd(refuse)
    return operator, gradient_operator
