"""Grid of a dataset: its target spacing, the order of its axes, and the shapes and memory of its images there.

The rules are nnU-Net's (2.8.1), stated in our own words. In the plan the coarsest axis, or the flat one, comes first: a
2D configuration leaves it out, and an anisotropic 3D network treats it gently, so it must be the slice axis.
"""

import math
from collections.abc import Sequence

import numpy as np

from medmamba.errors import ConfigError, size_text
from medmamba.geometry.grid import ANISOTROPY_THRESHOLD, ANY_SPACING_MM, LARGEST_SPACING_MM, MOST_VOXELS
from medmamba.plans.fingerprint import CaseStats, Fingerprint
from medmamba.plans.grid import LEAST_EDGE
from medmamba.plans.schema import Configuration, Decision

COARSE_AXIS_PERCENTILE = 10.0
"""Percentile of the cases' spacings that replaces the median along an anisotropic axis. Source: nnU-Net."""

NOT_FINER_BY_MM = 1e-5
"""The coarse axis is kept this much above the others, so that it stays the coarsest. Source: nnU-Net."""

BYTES_PER_VOXEL = 8
"""Of a case that is resampled: one float32 of the image as it was and one as it becomes; label maps are small beside
them."""

SOURCE = "nnU-Net 2.8.1, target spacing; Isensee et al. 2021, doi:10.1038/s41592-020-01008-z"


def choose_spacing(fingerprint: Fingerprint, given: Sequence[float] | None) -> tuple[tuple[float, ...], Decision]:
    """Spacing of the full-resolution grid in mm per canonical axis: the given one, or the rule's.

    Raises ConfigError for a given one with too few voxels, and names the nearest valid one.
    """
    target, decision = target_spacing(fingerprint.spacings, fingerprint.shapes_after_crop)
    if given is not None:
        _refuse_bad_spacing(fingerprint, given)
        changes = {
            "value": list(given),
            "inputs": {**decision.inputs, "by_rule": decision.value},
            "rule": "as given",
            "reason": "Chosen by the user instead of the rule's value.",
            "source": "user",
        }
        return tuple(given), decision.model_copy(update=changes)
    if not fingerprint.has_millimetres:
        reason = "The images have no millimetres, so pixels stay as they are and nothing is resampled."
        decision = decision.model_copy(update={"reason": reason})
    return target, decision


def refuse_no_spacing(spacing: Sequence[float], most_mm: float = math.inf) -> None:
    """Raises ConfigError unless there are three numbers of mm that may be a spacing."""
    least_mm = ANY_SPACING_MM[0]
    if len(spacing) != 3 or not all(least_mm <= value <= most_mm for value in spacing):
        given, most = ", ".join(f"{value:g}" for value in spacing), f" to {most_mm:g}" if most_mm < math.inf else ""
        raise ConfigError(f"spacing {given}: must be 3 numbers of mm, from {least_mm:g}{most}, one per axis i, j, k.")


def _refuse_bad_spacing(fingerprint: Fingerprint, spacing: Sequence[float]) -> None:
    """A given spacing must be three numbers that leave enough voxels along every axis that has them."""
    given = f"spacing {', '.join(f'{value:g}' for value in spacing)}"
    if not fingerprint.has_millimetres:
        raise ConfigError(f"{given}: these images have no millimetres, leave the spacing out.")
    refuse_no_spacing(spacing, max(LARGEST_SPACING_MM, float(fingerprint.spacings.max())))
    spacings, shapes = fingerprint.spacings, fingerprint.shapes_after_crop
    median = median_shape(spacings, shapes, spacing)
    least = np.minimum(LEAST_EDGE, np.median(shapes, axis=0))
    coarsest = np.floor(100 * np.median(shapes * spacings, axis=0) / least) / 100  # mm
    nearest = np.where(median < least, np.maximum(0.01, coarsest), spacing).tolist()
    if nearest != list(spacing):
        raise ConfigError(
            f"{given} mm: leaves {' x '.join(f'{n:g}' for n in median)} voxels of the median image. Nearest that "
            f"leaves enough: {', '.join(f'{value:g}' for value in nearest)}."
        )


def target_spacing(spacings: np.ndarray, shapes_after_crop: np.ndarray) -> tuple[tuple[float, ...], Decision]:
    """Spacing of the full-resolution grid, in mm, from the cases' spacings and shapes, both (n_cases, 3)."""
    median = np.median(spacings, axis=0)
    voxels = np.median(shapes_after_crop, axis=0)
    coarse = int(np.argmax(median))
    others = [axis for axis in range(len(median)) if axis != coarse]
    coarse_spacing = bool(median[coarse] > ANISOTROPY_THRESHOLD * median[others].max())
    few_slices = bool(ANISOTROPY_THRESHOLD * voxels[coarse] < voxels[others].min())

    percentiles = np.percentile(spacings, COARSE_AXIS_PERCENTILE, axis=0)
    target = median.copy()
    reason = "The median: along each axis at most half of the cases lose resolution and at most half gain it."
    if coarse_spacing and few_slices:
        low = float(percentiles[coarse])
        floor = float(median[others].max())
        target[coarse] = low if low >= floor else floor + NOT_FINER_BY_MM
        follows = "follows the better cases"
        if low < floor:
            follows = "is just above the other spacings, since the better cases are finer than these"
        reason = (
            f"The slices are thick ({median[coarse]:g} mm, median) and few, so the slice distance {follows} "
            f"({COARSE_AXIS_PERCENTILE:g}th percentile: {low:g} mm); in the plane the median is kept."
        )
    elif coarse_spacing:
        reason += " One axis is coarser, but it has many slices, so the median is safe there as well."
    values = tuple(float(value) for value in target)
    return values, Decision(
        name="target_spacing",
        value=list(values),
        inputs={
            "median_spacing": median.tolist(),
            "min_spacing": spacings.min(axis=0).tolist(),
            "max_spacing": spacings.max(axis=0).tolist(),
            f"percentile_{COARSE_AXIS_PERCENTILE:g}_spacing": percentiles.tolist(),
            "median_shape_after_crop": voxels.tolist(),
        },
        rule=f"median per axis; along an axis over {ANISOTROPY_THRESHOLD:g} times coarser with over "
        f"{ANISOTROPY_THRESHOLD:g} times fewer voxels than the others the {COARSE_AXIS_PERCENTILE:g}th percentile, or "
        f"{NOT_FINER_BY_MM:g} mm above the others where that is finer than they are",
        reason=reason,
        source=SOURCE,
    )


def new_shape(shape: Sequence[float], spacing: Sequence[float], new_spacing: Sequence[float]) -> tuple[int, ...]:
    """Shape after resampling from ``spacing`` to ``new_spacing``, rounded half to even.

    >>> new_shape((5, 5, 5), (0.5, 1.5, 2.5), (1, 1, 1))
    (2, 8, 12)
    """
    return tuple(round(old / new * size) for old, new, size in zip(spacing, new_spacing, shape, strict=True))


def median_shape(spacings: np.ndarray, shapes_after_crop: np.ndarray, target: Sequence[float]) -> tuple[float, ...]:
    """Median over the cases of their shape on the target grid; may end in .5 for an even number of cases."""
    resampled = [new_shape(shape, spacing, target) for shape, spacing in zip(shapes_after_crop, spacings, strict=True)]
    return tuple(float(value) for value in np.median(np.array(resampled), axis=0))


def axis_order(target_spacing: Sequence[float], shapes_after_crop: np.ndarray) -> tuple[list[int], Decision]:
    """Canonical array axis that becomes plan axis 0, 1, 2."""
    median_shape = np.median(shapes_after_crop, axis=0).tolist()
    if 1 not in median_shape:
        first = int(np.argmax(target_spacing))  # the first of equal ones, as in nnU-Net
        isotropic = max(target_spacing) == min(target_spacing)
        reason = (
            "The spacing is the same along all axes, so the axes stay in their order."
            if isotropic
            else f"Axis {'ijk'[first]} has the coarsest spacing ({max(target_spacing):g} mm): it is the slice axis."
        )
    else:
        first = median_shape.index(1)
        reason = f"The images have one voxel along axis {'ijk'[first]}: it is the slice axis, whatever its spacing."
    order = [first, *(axis for axis in range(3) if axis != first)]
    return order, Decision(
        name="axis_order",
        value=order,
        inputs={"target_spacing": list(target_spacing), "median_shape_after_crop": median_shape},
        rule="the flat axis first, else the coarsest axis first; the others keep their order",
        reason=reason,
        source="nnU-Net 2.8.1, transpose_forward; a flat axis that is not the coarsest is our addition",
    )


def refuse_oversize(
    fingerprint: Fingerprint,
    configuration: Configuration,
    axis_order: Sequence[int],
    *,
    memory_bytes: float = math.inf,
    most_voxels: int = MOST_VOXELS,
) -> None:
    """Raises ConfigError when a case is too large on the grid of a configuration, with the nearest spacing that fits.

    ``memory_bytes`` is the main memory of this machine.
    """
    channels = len(fingerprint.channel_names)
    limit = min(most_voxels, memory_bytes / BYTES_PER_VOXEL)
    for case in fingerprint.cases:
        shape = resampled_shape(case, configuration, axis_order)
        voxels = math.prod(shape) * channels
        if voxels <= limit:
            continue
        nearest = ""
        if configuration.spacing_mm is not None:
            factor = (voxels / limit) ** (1 / configuration.spatial_dims)
            spacing = ", ".join(f"{math.ceil(1000 * value * factor) / 1000:g}" for value in configuration.spacing_mm)
            nearest = f" Nearest spacing that fits: {spacing} mm (plan axes)."
        raise ConfigError(
            f"{case.case_id}: would have {'x'.join(map(str, shape))} voxels x {channels} channel(s) in configuration "
            f"{configuration.name}, {size_text(voxels * BYTES_PER_VOXEL)} while it is resampled; "
            f"{size_text(limit * BYTES_PER_VOXEL)} is the most here.{nearest}"
        )


def resampled_shape(case: CaseStats, configuration: Configuration, axis_order: Sequence[int]) -> list[int]:
    """Shape of a case on the grid of a configuration, in plan axes."""
    shape = [case.shape_after_crop[axis] for axis in axis_order]
    if case.spacing_mm is None or configuration.spacing_mm is None:
        return shape
    spacing = [case.spacing_mm[axis] for axis in axis_order]
    target = [*spacing[: 3 - configuration.spatial_dims], *configuration.spacing_mm]
    return [max(1, size) for size in new_shape(shape, spacing, target)]
