"""Patch size: as much of the image as the memory allows, in the proportions of the image in millimetres.

The search is nnU-Net's (2.8.1) with the cost of a patch handed in, so that it serves any network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medmamba.plans.pooling import PoolingPlan, plan_pooling

INITIAL_EDGE = {2: 2048, 3: 256}
"""Voxels: edge of the square or cube whose content the first patch has, before it is clipped to the image.
Source: nnU-Net."""

Cost = Callable[[PoolingPlan], float]
"""Cost of one sample of a patch with its pooling (activations or bytes)."""


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
    cost: Cost,
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
    pooling = plan_pooling(spacing, initial_patch_size(spacing, median_shape), max_pools=max_pools)
    value = cost(pooling)
    steps = [(pooling.patch_size, value)]
    seen = {pooling.patch_size}
    while value > limit or not in_time(pooling):
        shorter = _shorten(pooling, spacing, median_shape, max_pools, least_edge, seen)
        if shorter is None:
            return PatchSearch(pooling, value, tuple(steps), fits=False)
        pooling = shorter
        seen.add(pooling.patch_size)
        value = cost(pooling)
        steps.append((pooling.patch_size, value))
    return PatchSearch(pooling, value, tuple(steps), fits=True)


def _shorten(
    pooling: PoolingPlan,
    spacing: Sequence[float],
    median_shape: Sequence[float],
    max_pools: int | None,
    least_edge: int,
    seen: set[tuple[int, ...]],
) -> PoolingPlan | None:
    """The next smaller patch; an axis that cannot be shortened gives way to the next (nnU-Net would go on for ever)."""
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
        if shorter.patch_size not in seen:
            return shorter
    return None
