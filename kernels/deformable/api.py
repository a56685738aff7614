"""Deformable convolution with DCNv4's rule, in two and three dimensions: a weighted gather at learnt places.

Each output position looks at K taps of a regular grid, each moved by a learnt offset, reads the image there by (bi- or
tri-)linear interpolation, and adds the readings with learnt weights (Xiong et al. 2024, arXiv:2401.06197). Offsets and
weights differ between positions and groups of channels, and are shared by the channels of a group.

Per position and group `offset_mask` holds, for K taps: the K offsets, each as (dx, dy) or (dx, dy, dz), then the K
weights. Taps are enumerated with the last axis outermost (x, then y, then z inside). Further columns are padding, never
read. With kernel k, dilation d, stride t, padding p, offset scale s and half = d (k - 1) // 2, tap i of output position
q reads at::

    half - p + q t + s (i d + offset - half)

Outside the image there are zeros. In 3D the same rule holds with 27 taps of four numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medmamba.kernels.arguments import check_kinds
from medmamba.kernels.backends import choose_backend


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


def deformable_conv(
    value: Tensor,
    offset_mask: Tensor,
    *,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Deformable convolution (DCNv4) of a channels-last image.

    Arguments:
        value: (batch, Y, X, channels) or (batch, Z, Y, X, channels); groups divides channels.
        offset_mask: (batch, *output size, columns), columns at least groups * K * (dimensions + 1).
        kernel_size, stride, padding, dilation: one number, or one per axis in the order of the tensor.
        offset_scale: multiplies the tap grid and the offsets.
        remove_center: leave out the tap at kernel_size // 2.
        backend: as in `routed_scan`.

    Returns (batch, *output size, channels), float32 (float64 for float64 inputs, which only
    the torch and reference backends accept).
    """
    geometry = geometry_of(value, kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
    _check(value, offset_mask, geometry)
    dtype = torch.float64 if torch.float64 in (value.dtype, offset_mask.dtype) else torch.float32
    chosen = choose_backend(backend, value.device.type, dtype)
    if chosen == "triton":  # reads half precision as it is and computes in float32
        return _deform_compiled(value, offset_mask, geometry)
    value, offset_mask = value.to(dtype), offset_mask.to(dtype)
    if chosen == "cpp":
        return _deform_compiled(value, offset_mask, geometry)
    with torch.autocast(value.device.type, enabled=False):
        return _deform_torch(value, offset_mask, geometry, bounded=chosen != "reference")


def _deform_compiled(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    """By the operator, which runs what is compiled for the tensors' device."""
    from medmamba.kernels.deformable.op import deformable_conv_op

    sizes = [*geometry.kernel, *geometry.stride, *geometry.padding, *geometry.dilation]
    options = (sizes, geometry.groups, geometry.scale, geometry.remove_center)
    return deformable_conv_op(value.contiguous(), offset_mask.contiguous(), *options)


def offset_mask_width(groups: int, taps: int, dimensions: int = 2) -> int:
    """Columns that DCNv4 gives `offset_mask`: what is read, rounded up to a multiple of 8."""
    return -(-groups * taps * (dimensions + 1) // 8) * 8


def _deform_torch(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry, bounded: bool) -> Tensor:
    """Tap by tap in torch operations; `bounded` recomputes each tap in the backward pass instead of keeping it."""
    batch, channels = value.shape[0], value.shape[-1]
    dims, K, groups = len(geometry.image), len(geometry.taps), geometry.groups
    rows = value.reshape(batch, -1, groups, channels // groups)  # (b, positions, g, c)
    read = offset_mask[..., : geometry.columns].reshape(batch, -1, groups, K * (dims + 1))  # (b, q, g, ...)
    offsets = read[..., : K * dims].unflatten(-1, (K, dims)).flip(-1)  # (dx, dy, dz) to the axes of the tensor
    weights = read[..., K * dims :]
    result = rows.new_zeros(batch, read.shape[1], groups, channels // groups)
    learning = bounded and torch.is_grad_enabled() and (value.requires_grad or offset_mask.requires_grad)
    for k, tap in enumerate(geometry.taps):
        arguments = (rows, offsets[..., k, :], weights[..., k], geometry, tap)
        if learning:
            result = result + checkpoint(_one_tap, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            result = result + _one_tap(*arguments)
    return result.reshape(batch, *geometry.output, channels)


def _one_tap(rows: Tensor, offset: Tensor, weight: Tensor, geometry: DeformGeometry, tap: tuple[int, ...]) -> Tensor:
    """What one tap adds to each output position and group: (b, q, g, c)."""
    place = _tap_grid(geometry, tap, offset) + offset * geometry.scale  # (b, q, g, axis)
    size = torch.tensor(geometry.image, device=place.device, dtype=place.dtype)
    inside = ((place > -1) & (place < size)).all(-1)
    place = torch.where(inside.unsqueeze(-1), place, 0)
    low = place.floor()
    part = place - low
    total = torch.zeros((), dtype=rows.dtype, device=rows.device)
    for corner in itertools.product((0, 1), repeat=len(tap)):
        share = weight * inside
        index = torch.zeros_like(low[..., 0], dtype=torch.long)
        for axis, (step, n) in enumerate(zip(corner, geometry.image, strict=True)):
            at = low[..., axis] + step
            share = share * (part[..., axis] if step else 1 - part[..., axis]) * ((at >= 0) & (at < n))
            index = index * n + at.clamp(0, n - 1).long()
        reading = rows.gather(1, index.unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1]))
        total = total + share.unsqueeze(-1) * reading
    return total


def _tap_grid(geometry: DeformGeometry, tap: tuple[int, ...], like: Tensor) -> Tensor:
    """Where a tap reads without its offset: (1, q, 1, axis)."""
    axes = []
    for axis, i in enumerate(tap):
        half = geometry.dilation[axis] * (geometry.kernel[axis] - 1) // 2
        start = half - geometry.padding[axis] + geometry.scale * (i * geometry.dilation[axis] - half)
        steps = torch.arange(geometry.output[axis], device=like.device, dtype=like.dtype)
        axes.append(start + steps * geometry.stride[axis])
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, 1, len(tap))


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


def _check(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> None:
    check_kinds({"value": value, "offset_mask": offset_mask})
    expected = (value.shape[0], *geometry.output)
    if tuple(offset_mask.shape[:-1]) != expected or offset_mask.shape[-1] < geometry.columns:
        raise ValueError(
            f"offset_mask must be (batch, *output size, at least {geometry.columns}) = "
            f"{(*expected, geometry.columns)}, it is {tuple(offset_mask.shape)}."
        )
