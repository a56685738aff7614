"""The low-resolution grid of a cascade: coarser voxels until the patch covers enough of the image.

nnU-Net's search (2.8.1), with the planning of one grid handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

COVERAGE = 0.25
"""Fraction of the median image that a patch must cover. Source: nnU-Net, lowres_creation_threshold."""

GROWTH = 1.03
"""Factor by which the spacing grows per step. Source: nnU-Net."""

COMPARABLE = 2.0
"""Axes more than this many times finer than the coarsest grow first. Source: nnU-Net."""

WORTHWHILE = 2.0
"""The low resolution is dropped unless it has this many times fewer voxels. Source: nnU-Net."""

G = TypeVar("G")


@dataclass(frozen=True)
class LowResolution(Generic[G]):
    """Result of the search: the grid's plan or None, and the number of growth steps."""

    grid: G | None
    steps: int
    voxel_ratio: float
    """Voxels of the full-resolution image divided by those of the low-resolution image."""


def search_low_resolution(
    spacing: Sequence[float],
    median_shape: Sequence[float],
    patch_size: Sequence[int],
    plan_grid: Callable[[tuple[float, ...], tuple[int, ...], float], G],
    patch_of: Callable[[G], Sequence[int]],
) -> LowResolution[G]:
    """Grow ``spacing`` until a patch covers COVERAGE of the median image, planning anew at each step.

    ``plan_grid(spacing, median_shape, median_voxels)`` plans one grid and ``patch_of`` gives its patch.
    """
    full, shape = np.array(spacing, dtype=np.float64), np.array(median_shape, dtype=np.float64)
    grown, full_voxels = full.copy(), float(np.prod(shape))
    voxels, patch_voxels = full_voxels, float(math.prod(patch_size))
    grid: G | None = None
    steps = 0
    while patch_voxels / voxels < COVERAGE:
        finer = grown.max() / grown > COMPARABLE
        grown[finer if finer.any() else slice(None)] *= GROWTH
        coarser_shape = full / grown * shape
        voxels = float(np.prod(coarser_shape))
        where = tuple(float(value) for value in grown)
        grid = plan_grid(where, tuple(round(float(size)) for size in coarser_shape), voxels)
        patch_voxels = float(math.prod(patch_of(grid)))
        steps += 1
    ratio = full_voxels / voxels
    return LowResolution(grid if ratio >= WORTHWHILE else None, steps, ratio)
