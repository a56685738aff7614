"""From planes of logits on the plan's grid to planes on the image's own grid, one at a time.

Interpolation is linear and separable: inside the planes, then between two of them. So a plane of the image needs two
planes of the plan's grid, and the memory does not grow with the image, nor with the classes beyond those planes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import floor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.images.image import smallest_type
from medmamba.preprocessing.resample import nearest_index, separate_axis
from medmamba.trail import Fill, Resample, SpatialTrail


def native_planes(planes: Iterable[torch.Tensor], resample: Resample) -> Iterator[torch.Tensor]:
    """Planes (classes, J', K') before the resampling step from planes (classes, J, K) after it, in order."""
    coarse = None
    if resample.spacing_before_mm is not None and resample.spacing_after_mm is not None:
        coarse = separate_axis(resample.spacing_after_mm, resample.spacing_before_mm)
    wanted, given = resample.shape_before, resample.shape_after
    if wanted == given:
        yield from planes
        return
    source = iter(planes)
    held: dict[int, torch.Tensor] = {}
    reached = -1
    for index in range(wanted[0]):
        below, share = _between(index, wanted[0], given[0], nearest=coarse == 0)
        above = min(below + 1, given[0] - 1) if share else below
        while reached < above:
            reached += 1
            plane = next(source)
            held = {number: kept for number, kept in held.items() if number >= below}
            if reached >= below:
                held[reached] = _in_plane(plane, wanted[1:], None if coarse in (None, 0) else coarse - 1)
        held = {number: kept for number, kept in held.items() if number >= below}
        yield held[below] if not share else torch.lerp(held[below], held[above], share)
    for _ in source:
        pass  # the last planes may not be needed; the source still ends properly


def label_planes(planes: Iterable[torch.Tensor], shape: Sequence[int], classes: int) -> NDArray[np.unsignedinteger]:
    """The most likely class of every voxel (I, J, K), in the smallest type that holds ``classes`` indices."""
    labels = np.empty(tuple(shape), smallest_type(0, max(classes - 1, 1)))
    for index, plane in enumerate(planes):
        labels[index] = plane.argmax(0).numpy()
    return labels


def undo_storage(labels: NDArray[Any], trail: SpatialTrail, fill: Fill = 0) -> NDArray[Any]:
    """An array (C, I, J, K) of native spacing back through axis order, crop and orientation: (C, i, j, k)."""
    *steps, last = trail.steps
    assert isinstance(last, Resample)
    return SpatialTrail(trail.native, tuple(steps)).undo(labels, fill=fill)


def labels_on_native_grid(logits: torch.Tensor, trail: SpatialTrail) -> NDArray[Any]:
    """Label indices (i, j, k) on the trail's native grid from all logits (classes, I, J, K) at its end."""
    resample = trail.steps[-1]
    assert isinstance(resample, Resample)
    planes = native_planes(logits.unbind(1), resample)
    return undo_storage(label_planes(planes, resample.shape_before, len(logits))[None], trail)[0]


def _between(index: int, wanted: int, given: int, *, nearest: bool) -> tuple[int, float]:
    """The plane below and the share of the plane above at plane ``index``, voxel edges meeting at both ends."""
    if wanted == given:
        return index, 0.0
    if nearest:
        return int(nearest_index(given, wanted)[index]), 0.0
    place = max(0.0, (index + 0.5) * given / wanted - 0.5)
    below = min(floor(place), given - 1)
    return below, place - below if below < given - 1 else 0.0


def _in_plane(plane: torch.Tensor, shape: Sequence[int], coarse: int | None) -> torch.Tensor:
    """(classes, J, K) at another shape: bilinear, and nearest neighbour along axis ``coarse`` of the plane."""
    if coarse is not None and plane.shape[1 + coarse] != shape[coarse]:
        plane = plane.index_select(1 + coarse, nearest_index(plane.shape[1 + coarse], shape[coarse]))
    if tuple(plane.shape[1:]) == tuple(shape):
        return plane.clone()
    return torch.nn.functional.interpolate(plane[None], size=tuple(shape), mode="bilinear")[0]
