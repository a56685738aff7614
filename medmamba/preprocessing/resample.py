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
) -> NDArray[np.float32]:
    """An image (C, I, J, K), given in slabs (C, some planes, J, K), on a grid of ``shape``.

    Cubic spline, and nearest neighbour across ``coarse_axis``. Each plane is resampled on arrival, and only the result
    is kept for the first axis. ``given`` is the shape of the whole image.
    """
    channels, *before = given
    operators: list[torch.Tensor | None] = []  # the matrix (new, old) along each axis; None for equal lengths
    for axis, (old, new) in enumerate(zip(before, shape, strict=True)):
        matrix = _nearest_matrix if axis == coarse_axis else _cubic_matrix
        operators.append(None if old == new else matrix(old, new))
    across, down, along = operators
    planes = torch.empty((channels, before[0], *shape[1:]))
    start = 0
    for slab in slabs:
        part = torch.from_numpy(np.ascontiguousarray(slab, dtype=np.float32))
        if along is not None:
            part = torch.matmul(part, along.T)
        if down is not None:
            part = torch.matmul(down, part)
        planes[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    if across is None:
        return planes.numpy()
    result = torch.empty((channels, *shape))
    for channel, of_channel in zip(planes, result, strict=True):
        torch.mm(across, channel.flatten(1), out=of_channel.view(shape[0], -1))
    return result.numpy()


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
