"""Helpers of the PyTorch operators: optional tensors, their gradients, and the refusal of a second derivative."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef


def contiguous(*tensors: Tensor | None) -> list[Any]:
    """Each tensor with its elements in order, and None where there is none."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd records, and one of the tensors requires a gradient."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def new_gradients(*inputs: Tensor | None) -> tuple[Any, ...]:
    """A tensor for the gradient of each input; empty for None, because operators return no None."""
    like = next(value for value in inputs if value is not None)
    return tuple(like.new_empty(0) if value is None else like.new_empty(value.shape) for value in inputs)


def gradients_like(inputs: Sequence[Tensor | None], gradients: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """The gradients in the dtypes of their inputs; empty where the input is None."""
    like = next(value for value in inputs if value is not None)
    return tuple(
        like.new_empty(0) if value is None or gradient is None else gradient.to(value.dtype).contiguous()
        for value, gradient in zip(inputs, gradients, strict=True)
    )


def none_without_input(inputs: Iterable[Tensor | None], gradients: Iterable[Tensor]) -> list[Tensor | None]:
    """The gradients of an operator as autograd takes them: None where the input is None."""
    return [None if value is None else gradient for value, gradient in zip(inputs, gradients, strict=True)]


def refuse_second_derivative(operator: CustomOpDef, function: str) -> None:
    """Let the gradient of `operator`, which is itself a backward pass, say what to use instead."""

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"{function} has no second derivative in its compiled form. "
            'Use backend="torch" or backend="reference" where gradients of gradients are needed.'
        )

    torch.library.register_autograd(operator, refuse)
