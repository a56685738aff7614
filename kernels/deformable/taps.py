"""The deformable convolution in torch operations, tap by tap: the reference, and the form that bounds its memory."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medmamba.kernels.deformable.geometry import DeformGeometry
from medmamba.kernels.operators import needs_gradient


def deform_reference(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    """(batch, *output, channels) in the dtype of the inputs; what each tap reads is kept for the backward pass."""
    return _all_taps(value, offset_mask, geometry, recompute=False)


def deform_torch(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry) -> Tensor:
    """`deform_reference`, which computes each tap again in the backward pass instead of keeping it."""
    needed = needs_gradient((value, offset_mask))
    return _all_taps(value, offset_mask, geometry, recompute=needed)


def _all_taps(value: Tensor, offset_mask: Tensor, geometry: DeformGeometry, recompute: bool) -> Tensor:
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
