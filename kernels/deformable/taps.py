"""The deformable convolution in torch operations, tap by tap: the reference, and the form that bounds its memory."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medmamba.kernels.operators import needs_gradient


class DeformGeometry(NamedTuple):
    """Sizes of one deformable convolution; axes in the order of the tensors (y, x) or (z, y, x)."""

    image: Sequence[int]
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
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
        return {name: (*(int(name != "padding"),) * missing, *axes) for name, axes in sizes.items()}


def deform_torch(
    value: Tensor, offset_mask: Tensor, geometry: DeformGeometry, *, recompute: bool | None = None
) -> Tensor:
    """(batch, *output, channels) in the dtype of the inputs.

    recompute: compute each tap again in the backward pass instead of keeping its inputs; None: automatic.
    """
    recompute = needs_gradient((value, offset_mask)) if recompute is None else recompute
    batch, channels = value.shape[0], value.shape[-1]
    dims, K, groups = len(geometry.image), len(geometry.taps), geometry.groups
    rows = value.reshape(batch, -1, groups, channels // groups)  # (b, positions, g, c)
    read = offset_mask[..., : geometry.columns].reshape(batch, -1, groups, K * (dims + 1))  # (b, q, g, ...)
    offsets = read[..., : K * dims].unflatten(-1, (K, dims)).flip(-1)  # (dx, dy, dz) to the axes of the tensor
    weights = read[..., K * dims :]
    result = rows.new_zeros(batch, read.shape[1], groups, channels // groups)
    for k, tap in enumerate(geometry.taps):
        arguments = (rows, offsets[..., k, :], weights[..., k], geometry, tap)
        if recompute:
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
        fraction = weight * inside
        index = torch.zeros_like(low[..., 0], dtype=torch.long)
        for axis, (step, n) in enumerate(zip(corner, geometry.image, strict=True)):
            at = low[..., axis] + step
            fraction = fraction * (part[..., axis] if step else 1 - part[..., axis]) * ((at >= 0) & (at < n))
            index = index * n + at.clamp(0, n - 1).long()
        reading = rows.gather(1, index.unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1]))
        total = total + fraction.unsqueeze(-1) * reading
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


deform_reference = partial(deform_torch, recompute=False)
