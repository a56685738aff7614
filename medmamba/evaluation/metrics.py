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

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
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

    Masks are boolean (i, j, k), cropped to the box around both; two axes for an image of one slice. ``voxels`` counts
    the whole image. Without millimetres the spacing is None, and the tolerance of the surface Dice is in pixels.
    """

    truth: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    voxels: int
    spacing_mm: tuple[float, ...] | None
    tolerance: float = TOLERANCE_MM

    @classmethod
    def of_masks(
        cls,
        truth: NDArray[np.bool_],
        prediction: NDArray[np.bool_],
        spacing_mm: Sequence[float] | None,
        tolerance: float = TOLERANCE_MM,
        voxels: int | None = None,
    ) -> "MaskPair":
        """Two masks of a whole image, of which ``voxels`` count (default: all); ValueError if they differ in shape."""
        if truth.shape != prediction.shape:
            raise ValueError(f"masks differ in shape: {truth.shape} and {prediction.shape}")
        from scipy.ndimage import find_objects

        voxels = truth.size if voxels is None else voxels
        spacing = None if spacing_mm is None else tuple(spacing_mm)
        (box,) = find_objects((truth | prediction).view(np.uint8)) or [(slice(1),) * truth.ndim]
        flat = next((axis for axis in (2, 1, 0) if truth.ndim == 3 and truth.shape[axis] == 1), None)
        truth, prediction = truth[box], prediction[box]
        if flat is not None:
            truth, prediction = truth.squeeze(axis=flat), prediction.squeeze(axis=flat)
            spacing = spacing and spacing[:flat] + spacing[flat + 1 :]
        return cls(truth, prediction, voxels, spacing, tolerance)

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
        """In millimetres; in pixels for an image without millimetres."""
        return surface_distances(self.truth, self.prediction, self.spacing_mm or (1.0,) * self.truth.ndim)

    @cached_property
    def lesions(self) -> Lesions:
        return count_lesions(self.truth, self.prediction)

    def dice(self) -> float:
        return _ratio(2 * self.overlap_voxels, self.truth_voxels + self.prediction_voxels)

    def iou(self) -> float:
        return _ratio(self.overlap_voxels, self.truth_voxels + self.prediction_voxels - self.overlap_voxels)

    def hd95(self) -> float:
        return self.distances.hausdorff(95)

    def assd(self) -> float:
        return self.distances.mean()

    def nsd(self) -> float:
        return self.distances.surface_dice(self.tolerance)

    def sensitivity(self) -> float:
        return _ratio(self.overlap_voxels, self.truth_voxels)

    def specificity(self) -> float:
        outside = self.voxels - self.truth_voxels
        return _ratio(outside - (self.prediction_voxels - self.overlap_voxels), outside)

    def precision(self) -> float:
        return _ratio(self.overlap_voxels, self.prediction_voxels)

    def volume_bias(self) -> float:
        return _ratio(self.prediction_voxels - self.truth_voxels, self.truth_voxels)

    def volume_error(self) -> float:
        return abs(self.volume_bias())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


Measure = Callable[[MaskPair], float | None]
"""The number of a pair of masks; nan if it is undefined, None if it does not apply to the image."""


@dataclass(frozen=True)
class Metric:
    """One row of :data:`METRICS`; its columns are explained in docs/how-to/add-a-metric.md."""

    name: str
    better: Literal["high", "low", "zero"]
    measure: Measure
    meaning: str
    tables: Literal["all", "page", "none"] = "none"
    unit: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


def _mm(measure: Measure) -> Measure:
    """The measure, for images with millimetres only."""
    return lambda pair: None if pair.spacing_mm is None else measure(pair)


def _px(measure: Measure) -> Measure:
    """The measure, for images without millimetres only."""
    return lambda pair: measure(pair) if pair.spacing_mm is None else None


_HD95 = "95th percentile of the surface distance, the larger of both directions"
_ASSD = "mean surface distance, both directions together"
_NSD = "fraction of both surfaces within the tolerance of the other"
_SPECIFICITY = "fraction of the voxels outside the truth that were not predicted"
_LESION_SENSITIVITY = "fraction of the true connected components that the prediction touches"
_LESION_PRECISION = "fraction of the predicted connected components that touch the truth"
_LESION_F1 = "harmonic mean of lesion sensitivity and precision"

_ROWS = (
    Metric("dice", "high", MaskPair.dice, "2 |A and B| / (|A| + |B|)", "all", title="Dice"),
    Metric("iou", "high", MaskPair.iou, "|A and B| / |A or B|", "page", title="IoU"),
    Metric("hd95_mm", "low", _mm(MaskPair.hd95), _HD95, "all", "mm", title="HD95"),
    Metric("hd95_px", "low", _px(MaskPair.hd95), _HD95, "all", "px", title="HD95"),
    Metric("assd_mm", "low", _mm(MaskPair.assd), _ASSD, "none", "mm", title="ASSD"),
    Metric("assd_px", "low", _px(MaskPair.assd), _ASSD, "none", "px", title="ASSD"),
    Metric("nsd", "high", _mm(MaskPair.nsd), f"{_NSD}, in mm", "all", title="NSD"),
    Metric("nsd_px", "high", _px(MaskPair.nsd), f"{_NSD}, in pixels", "all", title="NSD (px)"),
    Metric("sensitivity", "high", MaskPair.sensitivity, "fraction of the truth's voxels that were predicted", "all"),
    Metric("specificity", "high", MaskPair.specificity, _SPECIFICITY, "all"),
    Metric("precision", "high", MaskPair.precision, "fraction of the predicted voxels that are true"),
    Metric("volume_bias", "zero", MaskPair.volume_bias, "(predicted - true volume) / true volume", "all", "fraction"),
    Metric("volume_error", "low", MaskPair.volume_error, "absolute value of volume_bias", "none", "fraction"),
    Metric("lesion_sensitivity", "high", lambda pair: pair.lesions.sensitivity, _LESION_SENSITIVITY, "all"),
    Metric("lesion_precision", "high", lambda pair: pair.lesions.precision, _LESION_PRECISION, "page"),
    Metric("lesion_f1", "high", lambda pair: pair.lesions.f1, _LESION_F1, title="lesion F1"),
)
METRICS = {metric.name: metric for metric in _ROWS}
"""Every metric by name. To add one, add a row (docs/how-to/add-a-metric.md)."""


COUNTS = ("truth_voxels", "prediction_voxels", "overlap_voxels", "truth_ml", "prediction_ml")
"""Fields of a :class:`Score` other than metrics and lesions."""


@dataclass(frozen=True)
class Score:
    """One structure of one case: metrics by name, and counts; ``voxel_ml`` is None for images without millimetres."""

    values: Mapping[str, float | None]
    truth_voxels: int
    prediction_voxels: int
    overlap_voxels: int
    lesions: Lesions
    voxel_ml: float | None = None

    @property
    def truth_ml(self) -> float | None:
        return None if self.voxel_ml is None else self.truth_voxels * self.voxel_ml

    @property
    def prediction_ml(self) -> float | None:
        return None if self.voxel_ml is None else self.prediction_voxels * self.voxel_ml

    def value(self, metric: str) -> float:
        """A metric as a number: nan where it is undefined or does not apply."""
        found = self.values[metric]
        return math.nan if found is None else found

    def as_dict(self) -> dict[str, Any]:
        """Every number, ready for strict JSON: undefined is None, infinite "inf"."""
        numbers = {name: as_json(value) for name, value in self.values.items()}
        return {**numbers, **{name: getattr(self, name) for name in COUNTS}, "lesions": asdict(self.lesions)}


def score_case(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    grid: Grid,
    structures: Mapping[str, Sequence[int]],
    options: EvaluateOptions | None = None,
    *,
    ignore: int | None = None,
) -> dict[str, Score]:
    """The scores of two label maps (i, j, k) by structure (label values), without voxels where truth is ``ignore``.

    Raises ValueError if their shapes differ.
    """
    chosen = options or EvaluateOptions()
    tolerance = chosen.tolerance_in_pixels if grid.spacing_mm is None else chosen.tolerance_mm
    voxel_ml = None if grid.voxel_volume_mm3 is None else grid.voxel_volume_mm3 / 1000
    voxels = truth.size
    if ignore is not None and truth.shape == prediction.shape:
        known = truth != ignore
        truth, prediction, voxels = truth * known, prediction * known, int(known.sum())
    scores = {}
    for name, values in structures.items():
        masks = _mask(truth, values), _mask(prediction, values)
        pair = MaskPair.of_masks(*masks, grid.spacing_mm, tolerance, voxels)
        scores[name] = score_pair(pair, voxel_ml)
    return scores


def score_pair(pair: MaskPair, voxel_ml: float | None = None) -> Score:
    """Every metric of two masks. Masks of one slice are compared as contours in the plane."""
    values = {name: metric.measure(pair) for name, metric in METRICS.items()}
    return Score(values, pair.truth_voxels, pair.prediction_voxels, pair.overlap_voxels, pair.lesions, voxel_ml)


def _mask(labels: NDArray[np.integer], values: Sequence[int]) -> NDArray[np.bool_]:
    mask = labels == values[0]  # several times faster than np.isin
    for value in values[1:]:
        mask |= labels == value
    return mask


def as_json(value: Any) -> Any:
    """A number, or a record of numbers, for strict JSON: nan as None, infinite as "inf"."""
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    return None if value is None or math.isnan(value) else "inf" if math.isinf(value) else value
