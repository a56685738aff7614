"""Feature maps with 2 or 3 spatial axes: memory layouts, padding and cropping, depthwise convolutions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}


def channels_first(x: Tensor) -> Tensor:
    """(B, *S, C) seen as (B, C, *S); no copy."""
    return x.movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, *S) seen as (B, *S, C); a copy only if the memory was channels-first."""
    return x.movedim(1, -1).contiguous()


def on_channels_last(convolution: nn.Module, x: Tensor) -> Tensor:
    """A convolution of maps (B, C, *S) applied to (B, *S, C)."""
    return channels_last(convolution(channels_first(x)))


def pad_to_multiple(x: Tensor, multiple: Sequence[int]) -> Tensor:
    """(B, C, *S) with every axis padded at its end to a multiple; repeats the border, so that no edge appears."""
    missing = [-n % m for n, m in zip(x.shape[2:], multiple, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [side for m in reversed(missing) for side in (0, m)], mode="replicate")


def crop_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, C, *S) cut at the end of each axis to ``shape``."""
    if tuple(x.shape[2:]) == tuple(shape):
        return x
    return x[(slice(None), slice(None), *(slice(n) for n in shape))]


class _NeverHalf:
    """A convolution that autocast on a CPU leaves in float32: torch's grouped ones are several times slower in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._conv_forward(x, self.weight, self.bias)  # type: ignore[attr-defined]
        return self._outside_autocast(x)

    @torch.jit.unused
    def _outside_autocast(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias  # type: ignore[attr-defined]
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self._conv_forward(x, weight, bias)  # type: ignore[attr-defined]
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(x.float(), weight, bias)  # type: ignore[attr-defined]


class DepthwiseConv2d(_NeverHalf, nn.Conv2d):
    """See :func:`depthwise`."""


class DepthwiseConv3d(_NeverHalf, nn.Conv3d):
    """See :func:`depthwise`."""


DEPTHWISE: dict[int, Callable[..., nn.Module]] = {2: DepthwiseConv2d, 3: DepthwiseConv3d}


def depthwise(width: int, kernel: Sequence[int], bias: bool = True) -> nn.Module:
    """Convolution of each channel with itself, size kept."""
    padding = tuple(k // 2 for k in kernel)
    return DEPTHWISE[len(kernel)](width, width, tuple(kernel), padding=padding, groups=width, bias=bias)


def per_axis(kernel: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """One number for every axis, or one for each."""
    return (kernel,) * spatial_dims if isinstance(kernel, int) else tuple(kernel)
