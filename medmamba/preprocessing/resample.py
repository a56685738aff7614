"""Resampling between voxel grids that share their corners (half-voxel centres, edge values continued).

A cubic spline is linear in its samples and separable, so along one axis it is a small matrix. scipy gives that matrix
once per pair of lengths, and each volume then costs three matrix products, the first two plane by plane.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray


def resample_slabs(
    slabs: Iterable[NDArray[np.float32]],
    given: tuple[int, ...],
    shape: tuple[int, ...],
    coarse_axis: int | None = None,
    *,
    clip: bool = False,
) -> NDArray[np.float32]:
    """An image (C, I, J, K), given in slabs (C, some planes, J, K), on a grid of ``shape``.

    Cubic spline, and nearest neighbour across ``coarse_axis``. Each plane is resampled on arrival, and only the result
    is kept for the first axis. ``given`` is the shape of the whole image. ``clip`` keeps values within those that are
    given: of a whole channel, or of each of its slices across ``coarse_axis``.
    """
    channels, *before = given
    operators: list[torch.Tensor | None] = []  # the matrix (new, old) along each axis; None for equal lengths
    for axis, (old, new) in enumerate(zip(before, shape, strict=True)):
        matrix = _nearest_matrix if axis == coarse_axis else _cubic_matrix
        operators.append(None if old == new else matrix(old, new))
    across, down, along = operators
    planes = torch.empty((channels, before[0], *shape[1:]))
    ranges = _Ranges(channels, before, coarse_axis) if clip and before != list(shape) else None
    start = 0
    for slab in slabs:
        part = torch.from_numpy(np.ascontiguousarray(slab, dtype=np.float32))
        if ranges is not None:
            ranges.see(part, start)
        if along is not None:
            part = torch.matmul(part, along.T)
        if down is not None:
            part = torch.matmul(down, part)
        planes[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    result = planes
    if across is not None:
        result = torch.empty((channels, *shape))
        for channel, of_channel in zip(planes, result, strict=True):
            torch.mm(across, channel.flatten(1), out=of_channel.view(shape[0], -1))
    if ranges is not None:
        ranges.clip(result)
    return result.numpy()


class _Ranges:
    """The smallest and largest value of each channel, or of each of its slices across the coarse axis."""

    def __init__(self, channels: int, shape: list[int], coarse_axis: int | None) -> None:
        self.axis = coarse_axis
        slices = 1 if coarse_axis is None else shape[coarse_axis]
        self.low = torch.full((channels, slices), torch.inf)
        self.high = torch.full((channels, slices), -torch.inf)

    def see(self, slab: torch.Tensor, start: int) -> None:
        """Some planes (C, some planes, J, K), the first of which is plane ``start``."""
        over = [axis for axis in (1, 2, 3) if self.axis is None or axis != 1 + self.axis]
        place = slice(start, start + slab.shape[1]) if self.axis == 0 else slice(None)
        low, high = (edge(over).reshape(len(slab), -1) for edge in (slab.amin, slab.amax))
        self.low[:, place] = torch.minimum(self.low[:, place], low)
        self.high[:, place] = torch.maximum(self.high[:, place], high)

    def clip(self, volume: torch.Tensor) -> None:
        """Keep the values (C, I, J, K) of another number of slices in the ranges, in place."""
        shape, source = [len(volume), 1, 1, 1], torch.zeros(1, dtype=torch.int64)
        if self.axis is not None:
            shape[1 + self.axis] = volume.shape[1 + self.axis]
            source = nearest_index(self.low.shape[1], shape[1 + self.axis])
        torch.clamp(volume, self.low[:, source].view(shape), self.high[:, source].view(shape), out=volume)


def resample_labels(
    labels: NDArray[np.integer], shape: tuple[int, ...], coarse_axis: int | None = None
) -> NDArray[np.integer]:
    """(I, J, K) label map on a grid of ``shape``: each label interpolated linearly, the largest value wins.

    A running maximum keeps the memory at two volumes whatever the number of labels.
    """
    if labels.shape == tuple(shape):
        return labels
    best = torch.full(tuple(shape), -1.0)
    result = torch.zeros(tuple(shape), dtype=torch.int64)
    for value in np.unique(labels):
        weight = interpolate_linear(torch.from_numpy(labels == value).float(), shape, coarse_axis)
        better = weight > best
        result[better] = int(value)
        best = torch.where(better, weight, best)
    return result.numpy().astype(labels.dtype)


def labels_by_halves(
    labels: NDArray[np.integer], shape: tuple[int, ...], coarse_axis: int | None = None
) -> NDArray[np.integer]:
    """(I, J, K) label map on a grid of ``shape``: a label where its linear interpolation is at least 0.5, else 0.

    Source: resize_segmentation of batchgenerators, which nnU-Net passes the labels of a cascade on with.
    """
    if labels.shape == tuple(shape):
        return labels
    result = np.zeros(tuple(shape), labels.dtype)
    for value in np.unique(labels):
        weight = interpolate_linear(torch.from_numpy(labels == value).double(), shape, coarse_axis)
        result[weight.numpy() >= 0.5] = value
    return result


def interpolate_linear(volume: torch.Tensor, shape: tuple[int, ...], coarse_axis: int | None = None) -> torch.Tensor:
    """(I, J, K) float tensor on a grid of ``shape``: trilinear, and nearest neighbour across ``coarse_axis``."""
    if coarse_axis is not None and volume.shape[coarse_axis] != shape[coarse_axis]:
        source = nearest_index(volume.shape[coarse_axis], shape[coarse_axis])
        volume = volume.index_select(coarse_axis, source.to(volume.device))
    if tuple(volume.shape) == tuple(shape):
        return volume
    return torch.nn.functional.interpolate(volume[None, None], size=tuple(shape), mode="trilinear")[0, 0]


@lru_cache(maxsize=64)
def _cubic_matrix(old: int, new: int) -> torch.Tensor:
    from scipy import ndimage

    if old == 1:
        return torch.ones(new, 1)
    identity = np.eye(old)
    matrix = ndimage.zoom(identity, (new / old, 1), order=3, mode="nearest", grid_mode=True)
    return torch.from_numpy(matrix.astype(np.float32))


def nearest_index(old: int, new: int) -> torch.Tensor:
    """For each of ``new`` voxels, the nearest of ``old`` voxels over the same field of view."""
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new)
    return centres.floor().long().clamp_(0, old - 1)


@lru_cache(maxsize=64)
def _nearest_matrix(old: int, new: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(nearest_index(old, new), old).float()
