"""Pooling plan of a U-shaped network: strides and kernel sizes of each stage, for a patch size and spacing.

The rule is nnU-Net's (2.8.1, network_topology), in our own words: in each round the axes that are long enough and not
much coarser than the finest of them are halved; an axis gets kernels of 3 for good once its spacing is comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_EDGE = 4
"""Voxels: no axis is halved below this length. Source: nnU-Net, UNet_featuremap_min_edge_length."""

COMPARABLE = 2.0
"""Two spacings are comparable when the coarser is less than this many times the finer. Source: nnU-Net."""

LONELY_AXIS_EDGES = 3
"""A single remaining axis is halved only with at least this many times MIN_EDGE voxels. Source: nnU-Net."""


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

    ``max_pools`` bounds the halvings per axis (None: as many as the patch allows).
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
