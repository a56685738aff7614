"""nnU-Net's searches (2.8.1), reimplemented: pooling of a patch, patch size, and low-resolution grid of a cascade.

The cost of a patch and the planning of a grid are arguments, so that the searches serve any network.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

MIN_EDGE = 4
"""Voxels: no axis is halved below this length. Source: nnU-Net, UNet_featuremap_min_edge_length."""

COMPARABLE = 2.0
"""Two spacings are comparable when the coarser is less than this many times the finer. Source: nnU-Net."""

LONELY_AXIS_EDGES = 3
"""A single remaining axis is halved only with at least this many times MIN_EDGE voxels. Source: nnU-Net."""

INITIAL_EDGE = {2: 2048, 3: 256}
"""Voxels: edge of the square or cube whose content the first patch has, before it is clipped to the image.
Source: nnU-Net."""

COVERAGE = 0.25
"""Fraction of the median image that a patch must cover. Source: nnU-Net, lowres_creation_threshold."""

GROWTH = 1.03
"""Factor by which the spacing grows per step. Source: nnU-Net."""

LOWRES_COMPARABLE = 2.0
"""Axes more than this many times finer than the coarsest grow first. Source: nnU-Net."""

WORTHWHILE = 2.0
"""The low resolution is dropped unless it has this many times fewer voxels. Source: nnU-Net."""


@dataclass(frozen=True)
class PoolingPlan:
    """Strides and kernels per stage (stage 0 has full resolution), and the patch padded so that they fit."""

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """Number that the patch is a multiple of, per axis."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(len(self.patch_size)))

    @property
    def num_pool_per_axis(self) -> tuple[int, ...]:
        """How often each axis is halved."""
        return tuple(divisor.bit_length() - 1 for divisor in self.divisor)


def plan_pooling(spacing: Sequence[float], patch_size: Sequence[float], *, max_pools: int | None = None) -> PoolingPlan:
    """The pooling for a patch on a grid of ``spacing`` (mm per axis); the patch is padded up to what the strides need.

    In each round the axes that are long enough and not much coarser than the finest of them are halved; an axis gets
    kernels of 3 for good once its spacing is comparable. ``max_pools`` bounds the halvings per axis (None: as many as
    the patch allows).
    """
    dims = len(spacing)
    space, size = [float(s) for s in spacing], [float(n) for n in patch_size]
    kernel, pools = [1] * dims, [0] * dims
    strides, kernels = [(1,) * dims], []
    while True:
        halved = _axes_to_halve(space, size, pools, max_pools)
        if not halved:
            break
        finest = min(space)
        kernel = [3 if k == 3 or s / finest < COMPARABLE else 1 for k, s in zip(kernel, space, strict=True)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(dims)))
        for axis in halved:
            pools[axis] += 1
            space[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * dims)  # the deepest stage sees every axis
    padded = tuple(math.ceil(n / 2**p) * 2**p for n, p in zip(patch_size, pools, strict=True))
    return PoolingPlan(patch_size=padded, strides=tuple(strides), kernel_sizes=tuple(kernels))


def _axes_to_halve(space: list[float], size: list[float], pools: list[int], max_pools: int | None) -> list[int]:
    long_enough = [axis for axis in range(len(size)) if size[axis] >= 2 * MIN_EDGE]
    if not long_enough:
        return []
    finest = min(space[axis] for axis in long_enough)
    axes = [axis for axis in long_enough if space[axis] / finest < COMPARABLE]
    if max_pools is not None:
        axes = [axis for axis in axes if pools[axis] < max_pools]
    if len(axes) == 1 and size[axes[0]] < LONELY_AXIS_EDGES * MIN_EDGE:
        return []
    return axes


@dataclass(frozen=True)
class PatchSearch:
    """The chosen pooling (with its patch), its cost, and every (patch, cost) that was tried, in order."""

    pooling: PoolingPlan
    cost: float
    steps: tuple[tuple[tuple[int, ...], float], ...]
    fits: bool
    """False if even the smallest patch costs or takes too much."""

    def within(self, limit: float) -> tuple[int, ...]:
        """The first patch that costs at most ``limit``, or the last of all."""
        return next((patch for patch, cost in self.steps if cost <= limit), self.patch_size)

    @property
    def patch_size(self) -> tuple[int, ...]:
        return self.pooling.patch_size


def initial_patch_size(spacing: Sequence[float], median_shape: Sequence[float]) -> list[float]:
    """Patch of equal edges in mm with the content of the initial box, clipped to the median image."""
    inverse = 1 / np.array(spacing, dtype=np.float64)
    dims = len(spacing)
    scale = (INITIAL_EDGE[dims] ** dims / np.prod(inverse)) ** (1 / dims)
    return [min(round(edge), size) for edge, size in zip(inverse * scale, median_shape, strict=True)]


def search_patch(
    spacing: Sequence[float],
    median_shape: Sequence[float],
    cost: Callable[[PoolingPlan], float],
    limit: float,
    *,
    max_pools: int | None = None,
    least_edge: int = 1,
    in_time: Callable[[PoolingPlan], bool] = lambda pooling: True,
) -> PatchSearch:
    """Shrink the initial patch until it costs at most ``limit`` and is ``in_time``; no axis gets below ``least_edge``.

    Each round shortens the axis along which the patch covers most of the median image, by the smallest step that keeps
    the patch divisible by the strides of the shortened patch (so 256 becomes 224, not 192).
    """

    def shorten(pooling: PoolingPlan) -> PoolingPlan | None:
        """The next smaller patch; an axis that cannot be shortened is skipped (nnU-Net would loop forever)."""
        coverage = [edge / size for edge, size in zip(pooling.patch_size, median_shape, strict=True)]
        for axis in reversed(np.argsort(coverage).tolist()):
            patch, trial = list(pooling.patch_size), list(pooling.patch_size)
            trial[axis] -= pooling.divisor[axis]
            if trial[axis] < 1:
                continue
            patch[axis] -= plan_pooling(spacing, trial, max_pools=max_pools).divisor[axis]
            if patch[axis] < least_edge:
                continue
            shorter = plan_pooling(spacing, patch, max_pools=max_pools)
            if shorter.patch_size not in (tried for tried, _ in steps):
                return shorter
        return None

    steps: list[tuple[tuple[int, ...], float]] = []
    shorter: PoolingPlan | None = plan_pooling(spacing, initial_patch_size(spacing, median_shape), max_pools=max_pools)
    while shorter is not None:
        pooling = shorter
        value = cost(pooling)
        steps.append((pooling.patch_size, value))
        if value <= limit and in_time(pooling):
            return PatchSearch(pooling, value, tuple(steps), fits=True)
        shorter = shorten(pooling)
    return PatchSearch(pooling, value, tuple(steps), fits=False)


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
        finer = grown.max() / grown > LOWRES_COMPARABLE
        grown[finer if finer.any() else slice(None)] *= GROWTH
        coarser_shape = full / grown * shape
        voxels = float(np.prod(coarser_shape))
        where = tuple(float(value) for value in grown)
        grid = plan_grid(where, tuple(round(float(size)) for size in coarser_shape), voxels)
        patch_voxels = float(math.prod(patch_of(grid)))
        steps += 1
    ratio = full_voxels / voxels
    return LowResolution(grid if ratio >= WORTHWHILE else None, steps, ratio)
