"""All numbers about one structure in one case, and what they are when a mask is empty.

=============  ===========  ==============  ===============
metric         both empty   truth empty     prediction empty
=============  ===========  ==============  ===============
dice, iou      undefined    0               0
nsd            undefined    0               0
hd95           undefined    infinite        infinite
sensitivity    undefined    undefined       0
precision      undefined    0               undefined
specificity    1            below 1         1
volume_error   undefined    undefined       1
=============  ===========  ==============  ===============

Undefined is nan and stays out of means; infinite distances are counted beside the mean of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.evaluation.lesions import Lesions, count_lesions
from medmamba.evaluation.surface import bounding_slices, surface_distances
from medmamba.geometry import Grid

DEFAULT_TOLERANCE = 1.0
"""Tolerance of the surface Dice, in mm (pixels for images without millimetres)."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: ``better`` is "high", "low" or "zero" (a signed error)."""

    title: str
    better: str
    meaning: str


METRICS: dict[str, Metric] = {
    "dice": Metric("Dice", "high", "2 |A and B| / (|A| + |B|)"),
    "iou": Metric("IoU", "high", "|A and B| / |A or B|"),
    "hd95": Metric("HD95", "low", "95th percentile of the surface distance, the larger of both ways"),
    "nsd": Metric("NSD", "high", "share of both surfaces within the tolerance of the other"),
    "sensitivity": Metric("sensitivity", "high", "share of the truth's voxels that were found"),
    "specificity": Metric("specificity", "high", "share of the voxels outside the truth that were left out"),
    "precision": Metric("precision", "high", "share of the predicted voxels that are true"),
    "volume_bias": Metric("volume bias", "zero", "(predicted - true volume) / true volume"),
    "volume_error": Metric("volume error", "low", "size of the volume bias"),
    "lesion_sensitivity": Metric("lesions found", "high", "share of the true connected components that were touched"),
    "lesion_precision": Metric("lesions real", "high", "share of the predicted components that touch the truth"),
    "lesion_f1": Metric("lesion F1", "high", "harmonic mean of the two shares of lesions"),
}


@dataclass(frozen=True)
class Score:
    """One structure of one case: counts, from which the ratios follow, and distances.

    ``voxel_ml`` is None for images without millimetres; distances are then in pixels.
    """

    voxels: int
    truth_voxels: int
    prediction_voxels: int
    overlap_voxels: int
    voxel_ml: float | None
    hd95: float
    nsd: float
    lesions: Lesions

    @property
    def dice(self) -> float:
        return _ratio(2 * self.overlap_voxels, self.truth_voxels + self.prediction_voxels)

    @property
    def iou(self) -> float:
        return _ratio(self.overlap_voxels, self.truth_voxels + self.prediction_voxels - self.overlap_voxels)

    @property
    def sensitivity(self) -> float:
        return _ratio(self.overlap_voxels, self.truth_voxels)

    @property
    def precision(self) -> float:
        return _ratio(self.overlap_voxels, self.prediction_voxels)

    @property
    def specificity(self) -> float:
        outside = self.voxels - self.truth_voxels
        return _ratio(outside - (self.prediction_voxels - self.overlap_voxels), outside)

    @property
    def volume_bias(self) -> float:
        return _ratio(self.prediction_voxels - self.truth_voxels, self.truth_voxels)

    @property
    def volume_error(self) -> float:
        return abs(self.volume_bias)

    @property
    def lesion_sensitivity(self) -> float:
        return self.lesions.sensitivity

    @property
    def lesion_precision(self) -> float:
        return self.lesions.precision

    @property
    def lesion_f1(self) -> float:
        return self.lesions.f1

    @property
    def truth_ml(self) -> float | None:
        """True volume in millilitres."""
        return None if self.voxel_ml is None else self.truth_voxels * self.voxel_ml

    @property
    def prediction_ml(self) -> float | None:
        """Predicted volume in millilitres."""
        return None if self.voxel_ml is None else self.prediction_voxels * self.voxel_ml

    def value(self, metric: str) -> float:
        """A metric of :data:`METRICS` by name."""
        return float(getattr(self, metric))

    def as_dict(self) -> dict[str, Any]:
        """Every number, ready for strict JSON: undefined is None, infinite "inf"."""
        numbers = {name: as_json(self.value(name)) for name in METRICS}
        counts = {name: getattr(self, name) for name in ("truth_voxels", "prediction_voxels", "overlap_voxels")}
        volumes = {"truth_ml": self.truth_ml, "prediction_ml": self.prediction_ml}
        return {**numbers, **counts, **volumes, "lesions": asdict(self.lesions)}


def score_case(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    grid: Grid,
    structures: Mapping[str, Sequence[int]],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
) -> dict[str, Score]:
    """The scores of two label maps (i, j, k) on one grid; a structure is one label value, or several (a region)."""
    if truth.shape != prediction.shape:
        raise ValueError(f"label maps differ in shape: {truth.shape} and {prediction.shape}")
    spacing: tuple[float, ...] = grid.spacing_mm or (1.0, 1.0, 1.0)
    voxel_ml = None if grid.voxel_volume_mm3 is None else grid.voxel_volume_mm3 / 1000
    return {
        name: score_masks(
            _member(truth, values), _member(prediction, values), spacing, voxel_ml=voxel_ml, tolerance=tolerance
        )
        for name, values in structures.items()
    }


def score_masks(
    truth: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing: Sequence[float],
    *,
    voxel_ml: float | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Score:
    """The score of two masks of one shape. Masks of one slice are compared as contours in the plane."""
    box = bounding_slices(truth | prediction)
    voxels = truth.size
    if box is None:
        return Score(voxels, 0, 0, 0, voxel_ml, math.nan, math.nan, Lesions(0, 0, 0, 0))
    flat = truth.ndim == 3 and truth.shape[2] == 1
    true, found = truth[box], prediction[box]
    if flat:
        true, found, spacing = true[:, :, 0], found[:, :, 0], spacing[:2]
    distances = surface_distances(true, found, spacing)
    return Score(
        voxels,
        int(true.sum()),
        int(found.sum()),
        int((true & found).sum()),
        voxel_ml,
        distances.hausdorff(),
        distances.surface_dice(tolerance),
        count_lesions(true, found),
    )


def as_json(value: float) -> float | str | None:
    """A number for strict JSON: nan as None, infinite as "inf"."""
    return None if math.isnan(value) else "inf" if math.isinf(value) else value


def _member(labels: NDArray[np.integer], values: Sequence[int]) -> NDArray[np.bool_]:
    return labels == values[0] if len(values) == 1 else np.isin(labels, list(values))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
