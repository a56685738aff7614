"""One case onto the plan's grid: canonical axes, crop to the body, normalise, the plan's axis order and spacing.

The order is nnU-Net's (crop, normalise, resample), so that statistics come from the image's own voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmamba.geometry import Grid, Shape, Spacing
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.normalize import normalize
from medmamba.preprocessing.resample import resample_image, resample_labels, separate_axis
from medmamba.trail import Crop, Reorient, Resample, SpatialTrail


@dataclass(frozen=True)
class PreprocessedCase:
    """A case on the plan's grid.

    ``image`` is (C, I, J, K) float32, ``labels`` (I, J, K) label indices of the plan or None, and ``trail`` leads back
    to the image's own grid.
    """

    case_id: str
    image: NDArray[np.float32]
    labels: NDArray[np.int16] | None
    trail: SpatialTrail


def preprocess_case(
    case_id: str,
    image: NDArray[np.generic],
    grid: Grid,
    plan: Plan,
    configuration: Configuration,
    labels: NDArray[np.integer] | None = None,
) -> PreprocessedCase:
    """Bring an image (C, i, j, k) and its label map (i, j, k) onto the configuration's grid."""
    trail = SpatialTrail(grid).then(Reorient.to_canonical(grid))
    array = trail.apply(image)
    inside = (array != 0).any(axis=0, keepdims=True)  # (1, i, j, k)
    crop = Crop(trail.grid.shape, *bounding_box(inside[0]))
    array, inside = crop.apply(array), crop.apply(inside)
    channels = [
        normalize(channel, scheme, inside[0]) for channel, scheme in zip(array, plan.normalization, strict=True)
    ]
    order = Reorient(crop.shape_after, _three(plan.axis_order))
    trail = trail.then(crop, order)
    resample = _resample_step(trail.grid, configuration)
    array = resample.apply(order.apply(np.stack(channels)), resample=resample_images)
    trail = trail.then(resample)
    truth = None if labels is None else trail.apply(labels[None], resample=resample_label_maps)[0].astype(np.int16)
    return PreprocessedCase(case_id, np.ascontiguousarray(array, dtype=np.float32), truth, trail)


def trail_of_shape(
    shape: Sequence[int], spacing_mm: Sequence[float] | None, plan: Plan, configuration: Configuration
) -> SpatialTrail:
    """The way onto the plan's grid of an image (i, j, k) in canonical axes with nothing to crop.

    ``spacing_mm`` is the configuration's own if None.
    """
    order = _three(plan.axis_order)
    grid = Grid(_three(shape))
    if spacing_mm is not None and configuration.spacing_mm is not None:
        x, y, z = spacing_mm
        grid = Grid(_three(shape), np.diag([x, y, z, 1.0]))
    trail = SpatialTrail(grid).then(Reorient.to_canonical(grid))
    trail = trail.then(Crop(trail.grid.shape, (0, 0, 0), trail.grid.shape), Reorient(trail.grid.shape, order))
    return trail.then(_resample_step(trail.grid, configuration))


def bounding_box(inside: NDArray[np.bool_]) -> tuple[Shape, Shape]:
    """First voxel and one past the last voxel that are True along each axis; the whole box when none is."""
    if not inside.any():
        return (0, 0, 0), _three(inside.shape)
    start, stop = [], []
    for axis in range(3):
        used = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        start.append(int(used[0]))
        stop.append(int(used[-1]) + 1)
    return _three(start), _three(stop)


def shape_at_spacing(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> Shape:
    """Voxels needed to keep the field of view at another spacing, rounded half to even, at least 1."""
    return _three(max(1, round(old / new * size)) for size, old, new in zip(shape, spacing, new_spacing, strict=True))


def resample_images(array: NDArray, shape: Shape, from_mm: Spacing | None, to_mm: Spacing | None) -> NDArray:
    """The :class:`~medmamba.trail.Resampler` of images: cubic spline."""
    return resample_image(array, shape, _coarse_axis(from_mm, to_mm))


def resample_label_maps(array: NDArray, shape: Shape, from_mm: Spacing | None, to_mm: Spacing | None) -> NDArray:
    """The :class:`~medmamba.trail.Resampler` of label maps (C, I, J, K): every label linearly, the largest wins."""
    return np.stack([resample_labels(labels, shape, _coarse_axis(from_mm, to_mm)) for labels in array])


def _resample_step(grid: Grid, configuration: Configuration) -> Resample:
    spacing, wanted = grid.spacing_mm, configuration.spacing_mm
    if spacing is None or wanted is None:
        return Resample(grid.shape, grid.shape)
    # A 2D plan names the spacing within the slice; slices stay as they are.
    target = tuple(wanted) if len(wanted) == 3 else (spacing[0], *wanted)
    shape = shape_at_spacing(grid.shape, spacing, target)
    return Resample(grid.shape, shape, spacing, (target[0], target[1], target[2]))


def _coarse_axis(from_mm: Spacing | None, to_mm: Spacing | None) -> int | None:
    return None if from_mm is None or to_mm is None else separate_axis(from_mm, to_mm)


def _three(values: object) -> Shape:
    i, j, k = (int(value) for value in values)  # type: ignore[attr-defined]
    return i, j, k
