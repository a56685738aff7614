"""Preprocessing of one case: canonical axes, crop to nonzero voxels, normalise, the plan's axis order and spacing.

The order is nnU-Net's (crop, normalise, resample), so that statistics come from the image's own voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmamba.geometry import Affine, Grid, Shape, Spacing
from medmamba.geometry.display import Display, axes_affine
from medmamba.geometry.grid import separate_axis
from medmamba.geometry.trail import Crop, Reorient, Resample, SpatialTrail
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.normalize import nonzero_mask_of, normalized_slabs
from medmamba.preprocessing.resample import labels_by_halves, resample_labels, resample_slabs


@dataclass(frozen=True)
class PreprocessedCase:
    """A case on the plan's grid.

    ``image`` is (C, I, J, K), ``labels`` (I, J, K) label indices of the plan, and ``trail`` leads back to the image's
    grid. ``nonzero_mask`` (I, J, K) is kept for training where channels are normalised in it.
    """

    case_id: str
    image: NDArray[np.float32]
    labels: NDArray[np.int16] | None
    trail: SpatialTrail
    nonzero_mask: NDArray[np.bool_] | None = None


def preprocess_case(
    case_id: str,
    image: NDArray[np.generic],
    grid: Grid,
    plan: Plan,
    configuration: Configuration,
    labels: NDArray[np.integer] | None = None,
) -> PreprocessedCase:
    """Bring an image (C, i, j, k) and its label map (i, j, k) onto the configuration's grid."""
    trail = SpatialTrail(grid).then(to_plan_axes(grid, plan))
    array = trail.apply(image)
    crop = Crop(trail.grid.shape, *bounding_box(array))
    order = Reorient(crop.shape_after, _three(plan.axis_order))
    array = order.apply(crop.apply(array))  # (C, I, J, K), the image's own memory still
    trail = trail.then(crop, order)
    resample = _resample_step(trail.grid, configuration)
    nonzero_mask = nonzero_mask_of(array, plan.normalization)
    resampled = resample_slabs(
        normalized_slabs(array, plan.normalization, nonzero_mask),
        array.shape,
        resample.shape_after,
        _coarse_axis(resample.spacing_before_mm, resample.spacing_after_mm),
        clip=plan.conventions == "nnunet",
    )
    trail = trail.then(resample)
    if labels is None:
        return PreprocessedCase(case_id, resampled, None, trail)
    truth = trail.apply(labels[None], resample=resample_label_maps)[0].astype(np.int16)
    if nonzero_mask is not None:
        nonzero_mask = resample.apply(nonzero_mask[None], resample=resample_label_maps)[0]
    return PreprocessedCase(case_id, resampled, truth, trail, nonzero_mask)


def to_plan_axes(grid: Grid, plan: Plan) -> Reorient:
    """The first step of every trail: to canonical axes, or none where the plan takes axes as they are stored."""
    return Reorient.to_canonical(grid) if plan.reorient else Reorient(grid.shape, (0, 1, 2))


def trail_of_shape(
    shape: Sequence[int], spacing_mm: Sequence[float] | None, plan: Plan, configuration: Configuration
) -> SpatialTrail:
    """The trail to the plan's grid for an image (i, j, k), in canonical axes or as stored, without cropping."""
    order = _three(plan.axis_order)
    grid = Grid(_three(shape))
    if spacing_mm is not None and configuration.spacing_mm is not None:
        x, y, z = spacing_mm
        grid = Grid(_three(shape), np.diag([x, y, z, 1.0]))
    trail = SpatialTrail(grid).then(Reorient.to_canonical(grid))
    trail = trail.then(Crop(trail.grid.shape, (0, 0, 0), trail.grid.shape), Reorient(trail.grid.shape, order))
    return trail.then(_resample_step(trail.grid, configuration))


def plan_display(
    shape: Sequence[int], plan: Plan, configuration: Configuration, affine: Affine | None = None
) -> Display:
    """How an array (I, J, K) on the configuration's grid is shown.

    Without its ``affine``, as in cases of earlier versions, the plan says where the axes run and how far apart voxels
    are.
    """
    order = _three(plan.axis_order)
    if affine is None and (spacing := configuration.spacing_mm) is not None:
        thick, row, column = spacing if len(spacing) == 3 else (max(spacing), *spacing)
        affine = axes_affine(order, (thick, row, column))
    return Display(Grid(_three(shape), affine), order)


def bounding_box(image: NDArray[np.generic]) -> tuple[Shape, Shape]:
    """First voxel and end along each axis of the nonzero part of (C, I, J, K); the whole image if all are 0."""
    strides = [abs(stride) for stride in image.strides[1:]]
    axis = strides.index(max(strides))  # whose planes lie together in memory
    flat = np.zeros([extent for other, extent in enumerate(image.shape[1:]) if other != axis], bool)
    used = []
    for plane in np.moveaxis(image, 1 + axis, 0):
        here = (plane != 0).any(axis=0)
        used.append(bool(here.any()))
        flat |= here
    if not any(used):
        return (0, 0, 0), _three(image.shape[1:])
    marks = [flat.any(axis=1), flat.any(axis=0)]
    marks.insert(axis, np.array(used))
    places = [np.flatnonzero(mark) for mark in marks]
    return _three(place[0] for place in places), _three(place[-1] + 1 for place in places)


def shape_at_spacing(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> Shape:
    """Voxels needed to keep the field of view at another spacing, rounded half to even, at least 1."""
    return _three(max(1, round(old / new * size)) for size, old, new in zip(shape, spacing, new_spacing, strict=True))


def resample_label_maps(array: NDArray, shape: Shape, from_mm: Spacing | None, to_mm: Spacing | None) -> NDArray:
    """The :class:`~medmamba.geometry.trail.Resampler` of labels (C, I, J, K): each linearly, then the argmax."""
    return np.stack([resample_labels(labels, shape, _coarse_axis(from_mm, to_mm)) for labels in array])


def resample_by_halves(array: NDArray, shape: Shape, from_mm: Spacing | None, to_mm: Spacing | None) -> NDArray:
    """The resampler of labels (C, I, J, K) that nnU-Net has: of each label what it has at least half of."""
    return np.stack([labels_by_halves(labels, shape, _coarse_axis(from_mm, to_mm)) for labels in array])


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
