"""The sizes of a deformable convolution: image, taps, strides, and what follows from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DeformGeometry:
    """Sizes of one deformable convolution; axes in the order of the tensors (y, x) or (z, y, x)."""

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    scale: float
    remove_center: bool

    @property
    def output(self) -> tuple[int, ...]:
        """Size of the output image."""
        axes = zip(self.image, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - (d * (k - 1) + 1)) // t + 1 for n, k, t, p, d in axes)

    @property
    def taps(self) -> list[tuple[int, ...]]:
        """Tap indices per axis, in the order in which `offset_mask` holds them."""
        center = tuple(k // 2 for k in self.kernel)
        taps = [order[::-1] for order in itertools.product(*(range(k) for k in reversed(self.kernel)))]
        return [tap for tap in taps if not (self.remove_center and tap == center)]

    @property
    def columns(self) -> int:
        """Columns of `offset_mask` that are read."""
        return self.groups * len(self.taps) * (len(self.image) + 1)

    @property
    def on_three_axes(self) -> dict[str, tuple[int, ...]]:
        """Every size as z, y, x: in two dimensions the z axis has one voxel, one tap and no padding."""
        sizes = {"image": self.image, "output": self.output, "kernel": self.kernel, "stride": self.stride}
        sizes |= {"padding": self.padding, "dilation": self.dilation}
        missing = 3 - len(self.image)
        return {name: (int(name != "padding"),) * missing + axes for name, axes in sizes.items()}


def _per_axis(name: str, number: int | Sequence[int], dims: int, smallest: int) -> tuple[int, ...]:
    numbers = (number,) * dims if isinstance(number, int) else tuple(number)
    if len(numbers) != dims:
        raise ValueError(f"{name} must be one number or {dims}, it is {numbers}.")
    if min(numbers) < smallest:
        raise ValueError(f"{name} must be at least {smallest}, it is {numbers}.")
    return numbers


def geometry_of(
    value: Tensor,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> DeformGeometry:
    """Sizes of the deformable convolution of `value`, checked; arguments as in `deformable_conv`."""
    if value.dim() not in (4, 5):
        raise ValueError(
            f"value must be (batch, Y, X, channels) or (batch, Z, Y, X, channels), it is {tuple(value.shape)}."
        )
    if 0 in value.shape:
        raise ValueError(f"value is empty: {tuple(value.shape)}.")
    dims = value.dim() - 2
    if groups < 1 or value.shape[-1] % groups:
        raise ValueError(f"groups = {groups} does not divide {value.shape[-1]} channels.")
    geometry = DeformGeometry(
        tuple(value.shape[1:-1]),
        _per_axis("kernel_size", kernel_size, dims, 1),
        _per_axis("stride", stride, dims, 1),
        _per_axis("padding", padding, dims, 0),
        _per_axis("dilation", dilation, dims, 1),
        groups,
        float(offset_scale),
        remove_center,
    )
    if not geometry.taps:
        raise ValueError("remove_center leaves no tap of a kernel of size 1.")
    if min(geometry.output) < 1:
        raise ValueError(f"The image {geometry.image} with padding {geometry.padding} is smaller than the kernel.")
    return geometry
