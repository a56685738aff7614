"""Matrix products of float32 on a CPU through oneDNN instead of MKL.

torch hands them to MKL, which on AMD's processors does without AVX-512: 105 against 245 GFLOP/s on one core (Zen 5,
4096 x 96 by 384). On other devices, in other types, under autocast and in compiled or exported graphs it is torch's own
``linear``. Same values but for the order of summation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) to (..., out), like ``torch.nn.functional.linear``."""
    if torch.jit.is_scripting():
        return F.linear(x, weight, bias)
    return _eager(x, weight, bias)


@torch.jit.unused
def _eager(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _suits(x, weight, bias):
        return F.linear(x, weight, bias)
    y: Tensor = _Product.apply(x.flatten(0, -2), weight, bias)
    return y.unflatten(0, x.shape[:-1])


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.device.type == "cpu"
        and x.dim() > 1
        and x.numel() > 0
        and all(value is None or value.dtype == torch.float32 for value in (x, weight, bias))
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and PRODUCT_EXISTS
    )


PRODUCT_EXISTS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
NARROW = 64  # gradients of narrower weights are sums over many rows, where MKL is faster


class _Product(torch.autograd.Function):
    """a (M, in) by the transpose of b (out, in), plus bias: the gradients are such products too."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b), bias, "none", [], "")

    @staticmethod
    def backward(ctx, gradient: Tensor):
        a, b = ctx.saved_tensors
        for_a, for_b, for_bias = ctx.needs_input_grad
        multiply = linear if min(b.shape) >= NARROW else F.linear
        return (
            linear(gradient, b.t()) if for_a else None,
            multiply(gradient.t(), a.t()) if for_b else None,
            gradient.sum(0) if for_bias else None,
        )


def _dense(matrix: Tensor) -> Tensor:
    """Rows or columns without gaps: where a slice of channels leaves some, oneDNN takes a path 20 times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()
