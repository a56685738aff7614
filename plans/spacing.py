"""Target spacing of a dataset, the shapes its images take there, and which axis is resampled on its own.

All rules are nnU-Net's (2.8.1), stated in our own words. Spacings and shapes share one axis order, whichever it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medmamba.plans.schema import Decision

ANISOTROPY_THRESHOLD = 3.0
"""Ratio of coarsest to finest spacing (and of voxel counts) above which a volume counts as anisotropic.
Source: nnU-Net, ANISO_THRESHOLD."""

COARSE_AXIS_PERCENTILE = 10.0
"""Percentile of the cases' spacings that replaces the median along an anisotropic axis. Source: nnU-Net."""

NOT_FINER_BY_MM = 1e-5
"""The coarse axis is kept this much above the others, so that it stays the coarsest. Source: nnU-Net."""

SOURCE = "nnU-Net 2.8.1, target spacing; Isensee et al. 2021, doi:10.1038/s41592-020-01008-z"


def target_spacing(spacings: np.ndarray, shapes_after_crop: np.ndarray) -> tuple[tuple[float, ...], Decision]:
    """Spacing of the full-resolution grid, in mm, from the cases' spacings and shapes, both (n_cases, 3)."""
    median = np.median(spacings, axis=0)
    voxels = np.median(shapes_after_crop, axis=0)
    coarse = int(np.argmax(median))
    others = [axis for axis in range(len(median)) if axis != coarse]
    coarse_spacing = bool(median[coarse] > ANISOTROPY_THRESHOLD * median[others].max())
    few_slices = bool(ANISOTROPY_THRESHOLD * voxels[coarse] < voxels[others].min())

    target = median.copy()
    reason = "Every case is resampled to the median spacing, so half of them lose and half of them gain resolution."
    if coarse_spacing and few_slices:
        low = float(np.percentile(spacings[:, coarse], COARSE_AXIS_PERCENTILE))
        floor = float(median[others].max())
        target[coarse] = low if low >= floor else floor + NOT_FINER_BY_MM
        reason = (
            f"The slices are thick ({median[coarse]:g} mm, median) and few, so the slice distance follows the better "
            f"cases (10th percentile) and thin slices are not thrown away; in the plane the median is kept."
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
            "median_shape_after_crop": voxels.tolist(),
        },
        rule="median per axis; 10th percentile along an axis over 3 times coarser with 3 times fewer voxels",
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


def separate_axis(current_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis that is resampled on its own (order 0) because its voxels are far apart, or None.

    Asked first of the image's spacing, then of the target's: anisotropic means a ratio above 3. Two or more equally
    coarse axes are not separated. Source: nnU-Net 2.8.1, default_resampling.

    >>> separate_axis((5, 1, 1), (1, 1, 1)), separate_axis((3, 1, 1), (1, 1, 1))
    (0, None)
    """
    for spacing in (current_spacing, new_spacing):
        coarsest = max(spacing)
        if coarsest / min(spacing) > ANISOTROPY_THRESHOLD:
            axes = [axis for axis, value in enumerate(spacing) if value == coarsest]
            return axes[0] if len(axes) == 1 else None
    return None
