"""Convolution blocks of the planned networks: convolution, instance norm, leaky ReLU, as in nnU-Net.

Source: Isensee et al. 2021, nnU-Net (arXiv:1904.08128), online methods; residual form after Isensee et al. 2024
(arXiv:2404.09556). Maps are (B, C, *S) in shape and channels-last in memory, so that they pass to the scan blocks as
(B, *S, C) without a copy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.maps import CONV
from medmamba.networks.blocks.scan_core import at_least_float32

SLOPE = 0.01  # of the leaky ReLU on the negative side
TRANSPOSED: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MEMORY_FORMAT = {2: torch.channels_last, 3: torch.channels_last_3d}


class InstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and standard deviation 1 over space, then scale and shift per channel.

    Equal to ``nn.InstanceNorm3d(width, affine=True)``, which on a CPU copies channels-last memory twice, and which
    refuses a map of one voxel (here it becomes the shift).
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" and x.shape[2:].numel() > 1:
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        tokens = x.movedim(1, -1)
        grid = tokens.shape[1:-1]
        flat = at_least_float32(tokens.flatten(1, -2))  # statistics are never taken in half precision
        out: Tensor = _NormaliseTokens.apply(flat, self.weight, self.bias, self.eps)
        return out.to(x.dtype).unflatten(1, grid).movedim(-1, 1)


class _NormaliseTokens(torch.autograd.Function):
    """Instance norm of (B, L, C) tokens, keeping one map for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        rstd = torch.rsqrt((centred * centred).mean(1, keepdim=True) + eps)  # (B, 1, C)
        ctx.save_for_backward(centred, rstd, weight)
        return torch.addcmul(bias, centred, weight * rstd)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, rstd, weight = ctx.saved_tensors
        grad = grads[0]
        total = grad.sum(1, keepdim=True)  # (B, 1, C)
        slope = (grad * centred).sum(1, keepdim=True) * rstd  # sum of grad * normalised
        scale = weight * rstd
        tokens = grad.shape[1]
        grad_x = torch.addcmul(-scale * total / tokens, grad, scale)
        grad_x = grad_x.addcmul_(centred, -scale * rstd * slope / tokens)
        return grad_x, slope.sum((0, 1)), total.sum((0, 1)), None


class ConvNormAct(nn.Module):
    """Convolution (edge ``kernel`` per axis), instance norm, leaky ReLU."""

    def __init__(
        self,
        in_width: int,
        width: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        *,
        activate: bool = True,
    ) -> None:
        super().__init__()
        dims = len(kernel)
        padding = tuple(k // 2 for k in kernel)
        self.conv = CONV[dims](in_width, width, tuple(kernel), tuple(stride or (1,) * dims), padding, bias=False)
        self.norm = InstanceNorm(width)
        self.activate, self.slope = activate, SLOPE  # TorchScript reads attributes, not names of the file

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, self.slope) if self.activate else x


class ResidualConv(nn.Module):
    """x + conv(conv(x)), normalised; a 1x1 shortcut only if the width changes."""

    def __init__(self, in_width: int, width: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.first = ConvNormAct(in_width, width, kernel)
        self.second = ConvNormAct(width, width, kernel, activate=False)
        same = in_width == width
        self.shortcut = nn.Identity() if same else ConvNormAct(in_width, width, (1,) * len(kernel), activate=False)
        self.slope = SLOPE

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.second(self.first(x)) + self.shortcut(x), self.slope)


def strided_kernel(stride: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel and padding of a downsampling: strides of 1 see 1 voxel, of 2 see 3, larger ones exactly their patch."""
    kernel = tuple(s if s > 2 else 2 * s - 1 for s in stride)
    return kernel, tuple(0 if s > 2 else k // 2 for s, k in zip(stride, kernel, strict=True))


class Downsample(nn.Module):
    """Convolution with one stride per axis, and instance norm."""

    def __init__(self, in_width: int, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        kernel, padding = strided_kernel(stride)
        self.conv = CONV[len(stride)](in_width, width, kernel, tuple(stride), padding, bias=False)
        self.norm = InstanceNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Upsample(nn.Module):
    """Transposed convolution whose kernel is its stride."""

    def __init__(self, in_width: int, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = TRANSPOSED[len(stride)](in_width, width, tuple(stride), tuple(stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)
