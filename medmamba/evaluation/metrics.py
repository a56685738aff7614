"""The metrics of one structure in one case: a table with one row each, and what they are when a mask is empty.

=============  ===========  ==============  ===============
metric         both empty   truth empty     prediction empty
=============  ===========  ==============  ===============
dice, iou      undefined    0               0
nsd            undefined    0               0
hd95, assd     undefined    infinite        infinite
sensitivity    undefined    undefined       0
precision      undefined    0               undefined
specificity    1            below 1         1
volume_error   undefined    undefined       1
=============  ===========  ==============  ===============

Undefined is nan and stays out of means; infinite distances are counted beside the mean of the others. A metric that
does not apply to an image is None: millimetres where the image has no spacing, pixels where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medmamba.evaluation.lesions import Lesions, count_lesions
from medmamba.evaluation.options import TOLERANCE_MM, EvaluateOptions
from medmamba.evaluation.surface import SurfaceDistances, surface_distances
from medmamba.geometry import Grid


@dataclass(frozen=True, eq=False)
class MaskPair:
    """Truth and prediction of one structure in one case, and what several metrics need, computed once.

    Attributes:
        truth, prediction: boolean (i, j, k), cropped to the box around both; (i, j) for an image of one slice.
        voxels: of the whole image.
        spacing_mm: of each axis of the masks; None for an image without millimetres.
        tolerance_mm, tolerance_px: of the surface Dice, with and without millimetres.
    """

    truth: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    voxels: int
    spacing_mm: tuple[float, ...] | None
    tolerance_mm: float = TOLERANCE_MM
    tolerance_px: float = TOLERANCE_MM

    @classmethod
    def of_masks(
        cls,
        truth: NDArray[np.bool_],
        prediction: NDArray[np.bool_],
        spacing_mm: Sequence[float] | None,
        tolerance_mm: float = TOLERANCE_MM,
        tolerance_px: float = TOLERANCE_MM,
    ) -> MaskPair:
        """Two masks of a whole image; raises ValueError if they differ in shape."""
        if truth.shape != prediction.shape:
            raise ValueError(f"masks differ in shape: {truth.shape} and {prediction.shape}")
        from scipy.ndimage import find_objects

        voxels, spacing = truth.size, None if spacing_mm is None else tuple(spacing_mm)
        (box,) = find_objects((truth | prediction).view(np.uint8)) or [(slice(1),) * truth.ndim]
        flat = truth.ndim == 3 and truth.shape[2] == 1
        truth, prediction = truth[box], prediction[box]
        if flat:
            truth, prediction, spacing = truth[:, :, 0], prediction[:, :, 0], spacing and spacing[:2]
        return cls(truth, prediction, voxels, spacing, tolerance_mm, tolerance_px)

    @cached_property
    def truth_voxels(self) -> int:
        return int(self.truth.sum())

    @cached_property
    def prediction_voxels(self) -> int:
        return int(self.prediction.sum())

    @cached_property
    def overlap_voxels(self) -> int:
        return int((self.truth & self.prediction).sum())

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Between the surfaces; in millimetres, for an image without them in pixels."""
        return surface_distances(self.truth, self.prediction, self.spacing_mm or (1.0,) * self.truth.ndim)

    @property
    def distances_mm(self) -> SurfaceDistances | None:
        """Between the surfaces, in millimetres; None for an image without them."""
        return None if self.spacing_mm is None else self.distances

    @property
    def distances_px(self) -> SurfaceDistances | None:
        """Between the surfaces, in pixels; None for an image with millimetres."""
        return self.distances if self.spacing_mm is None else None

    @cached_property
    def lesions(self) -> Lesions:
        """Connected components of both masks."""
        return count_lesions(self.truth, self.prediction)


@dataclass(frozen=True)
class Metric:
    """One row of :data:`METRICS`.

    Attributes:
        name: in JSON and CSV, with its unit at the end.
        title: as a heading.
        unit: of the number; empty for a ratio from 0 to 1.
        better: "high", "low" or "zero" (a signed error).
        measure: the number of a pair of masks; nan if it is undefined, None if it does not apply to the image.
        meaning: in a line.
        tables: that show it: the page's and the terminal's ("all"), the page's, or none; files hold every metric.
    """

    name: str
    title: str
    better: Literal["high", "low", "zero"]
    measure: Callable[[MaskPair], float | None]
    meaning: str
    tables: Literal["all", "page", "none"] = "none"
    unit: str = ""

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _specificity(pair: MaskPair) -> float:
    outside = pair.voxels - pair.truth_voxels
    return _ratio(outside - (pair.prediction_voxels - pair.overlap_voxels), outside)


def _volume_bias(pair: MaskPair) -> float:
    return _ratio(pair.prediction_voxels - pair.truth_voxels, pair.truth_voxels)


def _hd95(distances: SurfaceDistances | None) -> float | None:
    return None if distances is None else distances.hausdorff(95)


def _assd(distances: SurfaceDistances | None) -> float | None:
    return None if distances is None else distances.mean()


def _nsd(distances: SurfaceDistances | None, tolerance: float) -> float | None:
    return None if distances is None else distances.surface_dice(tolerance)


_HD95 = "95th percentile of the surface distance, the larger of both directions"
_ASSD = "mean surface distance, both directions together"
_NSD = "fraction of both surfaces within the tolerance of the other"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "dice",
            "Dice",
            "high",
            lambda pair: _ratio(2 * pair.overlap_voxels, pair.truth_voxels + pair.prediction_voxels),
            "2 |A and B| / (|A| + |B|)",
            "all",
        ),
        Metric(
            "iou",
            "IoU",
            "high",
            lambda pair: _ratio(pair.overlap_voxels, pair.truth_voxels + pair.prediction_voxels - pair.overlap_voxels),
            "|A and B| / |A or B|",
            "page",
        ),
        Metric("hd95_mm", "HD95", "low", lambda pair: _hd95(pair.distances_mm), _HD95, "all", unit="mm"),
        Metric("hd95_px", "HD95", "low", lambda pair: _hd95(pair.distances_px), _HD95, "all", unit="px"),
        Metric("assd_mm", "ASSD", "low", lambda pair: _assd(pair.distances_mm), _ASSD, unit="mm"),
        Metric("assd_px", "ASSD", "low", lambda pair: _assd(pair.distances_px), _ASSD, unit="px"),
        Metric("nsd", "NSD", "high", lambda pair: _nsd(pair.distances_mm, pair.tolerance_mm), f"{_NSD}, in mm", "all"),
        Metric(
            "nsd_px",
            "NSD (px)",
            "high",
            lambda pair: _nsd(pair.distances_px, pair.tolerance_px),
            f"{_NSD}, in pixels",
            "all",
        ),
        Metric(
            "sensitivity",
            "sensitivity",
            "high",
            lambda pair: _ratio(pair.overlap_voxels, pair.truth_voxels),
            "fraction of the truth's voxels that were predicted",
            "all",
        ),
        Metric(
            "specificity",
            "specificity",
            "high",
            _specificity,
            "fraction of the voxels outside the truth that were not predicted",
            "all",
        ),
        Metric(
            "precision",
            "precision",
            "high",
            lambda pair: _ratio(pair.overlap_voxels, pair.prediction_voxels),
            "fraction of the predicted voxels that are true",
        ),
        Metric(
            "volume_bias",
            "volume bias",
            "zero",
            _volume_bias,
            "(predicted - true volume) / true volume",
            "all",
            unit="fraction",
        ),
        Metric(
            "volume_error",
            "volume error",
            "low",
            lambda pair: abs(_volume_bias(pair)),
            "size of volume_bias",
            unit="fraction",
        ),
        Metric(
            "lesion_sensitivity",
            "lesion sensitivity",
            "high",
            lambda pair: pair.lesions.sensitivity,
            "fraction of the true connected components that the prediction touches",
            "all",
        ),
        Metric(
            "lesion_precision",
            "lesion precision",
            "high",
            lambda pair: pair.lesions.precision,
            "fraction of the predicted connected components that touch the truth",
            "page",
        ),
        Metric(
            "lesion_f1",
            "lesion F1",
            "high",
            lambda pair: pair.lesions.f1,
            "harmonic mean of lesion sensitivity and precision",
        ),
    )
}
"""Every metric by name. To add one, add a row (docs/how-to/add-a-metric.md)."""


@dataclass(frozen=True)
class Score:
    """One structure of one case: its metrics by name, and the counts that they were made from.

    ``voxel_ml`` is None for images without millimetres.
    """

    values: Mapping[str, float | None]
    truth_voxels: int
    prediction_voxels: int
    overlap_voxels: int
    lesions: Lesions
    voxel_ml: float | None = None

    @property
    def truth_ml(self) -> float | None:
        """True volume in millilitres."""
        return None if self.voxel_ml is None else self.truth_voxels * self.voxel_ml

    @property
    def prediction_ml(self) -> float | None:
        """Predicted volume in millilitres."""
        return None if self.voxel_ml is None else self.prediction_voxels * self.voxel_ml

    def value(self, metric: str) -> float:
        """A metric as a number: nan where it is undefined or does not apply."""
        found = self.values[metric]
        return math.nan if found is None else found

    def as_dict(self) -> dict[str, Any]:
        """Every number, ready for strict JSON: undefined is None, infinite "inf"."""
        numbers = {name: as_json(value) for name, value in self.values.items()}
        counts = {name: getattr(self, name) for name in ("truth_voxels", "prediction_voxels", "overlap_voxels")}
        volumes = {"truth_ml": self.truth_ml, "prediction_ml": self.prediction_ml}
        return {**numbers, **counts, **volumes, "lesions": asdict(self.lesions)}


def score_case(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    grid: Grid,
    structures: Mapping[str, Sequence[int]],
    options: EvaluateOptions | None = None,
) -> dict[str, Score]:
    """The scores of two label maps (i, j, k) on one grid; a structure is one label value, or several (a region).

    Of ``options``, the tolerances count. Raises ValueError if the maps differ in shape.
    """
    chosen = options or EvaluateOptions()
    voxel_ml = None if grid.voxel_volume_mm3 is None else grid.voxel_volume_mm3 / 1000
    scores = {}
    for name, values in structures.items():
        masks = _mask(truth, values), _mask(prediction, values)
        pair = MaskPair.of_masks(*masks, grid.spacing_mm, chosen.tolerance_mm, chosen.tolerance_in_pixels)
        scores[name] = score_pair(pair, voxel_ml)
    return scores


def score_pair(pair: MaskPair, voxel_ml: float | None = None) -> Score:
    """Every metric of two masks. Masks of one slice are compared as contours in the plane."""
    return Score(
        values={name: metric.measure(pair) for name, metric in METRICS.items()},
        truth_voxels=pair.truth_voxels,
        prediction_voxels=pair.prediction_voxels,
        overlap_voxels=pair.overlap_voxels,
        lesions=pair.lesions,
        voxel_ml=voxel_ml,
    )


def _mask(labels: NDArray[np.integer], values: Sequence[int]) -> NDArray[np.bool_]:
    mask = labels == values[0]  # several times faster than np.isin, which would do
    for value in values[1:]:
        mask |= labels == value
    return mask


def as_json(value: float | None) -> float | str | None:
    """A number for strict JSON: nan as None, infinite as "inf"."""
    return None if value is None or math.isnan(value) else "inf" if math.isinf(value) else value
