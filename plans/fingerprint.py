"""The fingerprint of a dataset: the facts per case and the intensity statistics that a plan is made from.

Shapes and spacings are in canonical array order (i, j, k) of images brought to RAS+. A 2D image is one slice: shape
(1, H, W) or (W, H, 1). Images without millimetres have spacing None; the rules then see :data:`PIXEL_SPACING`.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medmamba.errors import InputErrors, counted
from medmamba.geometry.grid import ANY_SPACING_MM
from medmamba.plans.json_record import Record

PIXEL_SPACING = (999.0, 1.0, 1.0)
"""What nnU-Net's rules see for an image without millimetres: one very thick slice of unit pixels."""

FOREGROUND_SAMPLES = 2_000_000
"""Foreground voxels drawn per channel over the whole dataset, equally many per case: enough to know the mean to a
thousandth of the standard deviation and the 0.5 % percentile from 10 000 voxels below it."""

HISTOGRAM_BINS = 40
"""Equal bins between the percentiles 0.5 and 99.5."""

SEED = 1234
"""Seed of the foreground sample. Source: nnU-Net 2.8.1, fingerprint_extractor."""


class ChannelIntensity(Record):
    """Intensity statistics of one channel over sampled foreground voxels, in the image's own units."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float
    percentiles: dict[str, float] = Field(default_factory=dict)
    """Further percentiles, keyed by their number ("5", "25", ...); for people and quality control."""
    histogram: list[int] = Field(default_factory=list)
    """Voxels in equal bins between the percentiles 0.5 and 99.5."""


class CaseStats(Record):
    """What the planner needs to know about one case."""

    case_id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    """Distance between voxel centres per axis in mm, or None for images without millimetres."""
    orientation: str | None
    """Axis codes of the file as stored, e.g. "LPS", before it was brought to RAS+."""
    shape_after_crop: tuple[int, int, int]
    """Shape of the box around all non-zero voxels."""
    label_voxels: dict[str, int]
    """Number of voxels per label name."""
    label_components: dict[str, int] = Field(default_factory=dict)
    """Number of connected components per label name, where counted."""
    label_centre_mm: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    """World position (x, y, z) of the centre of mass of each present label, RAS+ millimetres."""
    foreground_intensity: list[tuple[float, float, float]] = Field(default_factory=list)
    """Percentiles 0.5, 50 and 99.5 of the foreground per channel, in files of earlier versions."""
    annotated_labels: list[str] | None = None
    """Names of the labels that were annotated in this case; None: all of them."""
    image_hash: str | None = None
    """Hash of the voxel values and the shape, to find copies of one image under several names."""

    @property
    def rule_spacing(self) -> tuple[float, float, float]:
        """The spacing as the planner's rules see it: millimetres, or unit pixels with the flat axis very thick.

        A 2D image is one slice along whichever axis has one voxel; a stack without millimetres has unit voxels.
        """
        if self.spacing_mm is not None:
            return self.spacing_mm
        thick, pixel, _ = PIXEL_SPACING
        flat = next((axis for axis in (0, 2, 1) if self.shape[axis] == 1), None)
        i, j, k = (thick if axis == flat else pixel for axis in range(3))
        return (i, j, k)

    @property
    def field_of_view_mm(self) -> tuple[float, float, float] | None:
        """Extent of the image per axis in mm (voxels times spacing), or None without millimetres."""
        if self.spacing_mm is None:
            return None
        i, j, k = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return (i, j, k)

    @property
    def volume_ml(self) -> dict[str, float] | None:
        """Volume per label in millilitres, or None without millimetres."""
        if self.spacing_mm is None:
            return None
        voxel_ml = math.prod(self.spacing_mm) / 1000.0
        return {name: count * voxel_ml for name, count in self.label_voxels.items()}

    @property
    def present_labels(self) -> list[str]:
        """Names of the labels, background left out, that have at least one voxel here."""
        return [name for name, count in self.label_voxels.items() if count and name != "background"]

    def problems(self) -> list[str]:
        """Faults that no plan can be made from, one line each."""
        found = []
        least, most = ANY_SPACING_MM
        for axis, name in enumerate("ijk"):
            if self.shape[axis] < 1 or not 1 <= self.shape_after_crop[axis] <= self.shape[axis]:
                found.append(
                    f"{self.case_id}: axis {name} has {self.shape[axis]} voxels, {self.shape_after_crop[axis]} after "
                    f"cropping to non-zero. Check that the image is not empty."
                )
            spacing = None if self.spacing_mm is None else self.spacing_mm[axis]
            if spacing is not None and not (least <= spacing <= most):
                found.append(
                    f"{self.case_id}: spacing along axis {name} is {spacing:g} mm, it must be from "
                    f"{least:g} to {most:g}. Repair the header of this image."
                )
        return found


class Fingerprint(Record):
    """All facts about a dataset that a plan is made from."""

    kind: ClassVar[str] = "fingerprint"

    schema_version: Literal[1] = 1
    dataset_name: str
    channel_names: list[str] = Field(min_length=1)
    labels: dict[str, int]
    """Value of each label in the label maps, by name; contains "background"."""
    cases: list[CaseStats] = Field(min_length=1)
    intensities: list[ChannelIntensity]
    """One entry per channel."""
    median_relative_size_after_cropping: float = Field(gt=0, le=1)
    content_hash: str = ""
    """SHA-256 of everything else in this record."""

    @model_validator(mode="after")
    def _one_intensity_per_channel(self) -> Self:
        if len(self.intensities) != len(self.channel_names):
            raise ValueError(
                f"{len(self.channel_names)} channel names but {len(self.intensities)} intensity entries; "
                f"there must be one per channel"
            )
        return self

    @property
    def has_millimetres(self) -> bool:
        """Whether the images have a spacing in mm (checked to be the same for all by :func:`build_fingerprint`)."""
        return self.cases[0].spacing_mm is not None

    @property
    def knows_axes(self) -> bool:
        """Whether axes are anatomical and shapes those of whole images; not in one taken over from nnU-Net."""
        return any(case.orientation is not None or case.label_voxels for case in self.cases)

    @property
    def structures(self) -> list[str]:
        """Names of the labels without the background."""
        return [name for name in self.labels if name != "background"]

    @property
    def spacings(self) -> np.ndarray:
        """Spacing per case, (n_cases, 3), as the rules see it."""
        return np.array([case.rule_spacing for case in self.cases], dtype=np.float64)

    @property
    def shapes_after_crop(self) -> np.ndarray:
        """Shape after cropping per case, (n_cases, 3)."""
        return np.array([case.shape_after_crop for case in self.cases], dtype=np.int64)


def build_fingerprint(
    dataset_name: str,
    channel_names: Sequence[str],
    labels: dict[str, int],
    cases: Sequence[CaseStats],
    samples_per_channel: Sequence[np.ndarray],
) -> Fingerprint:
    """Put the facts of all cases together; the order of ``cases`` does not matter.

    ``samples_per_channel`` holds one 1-D array of sampled foreground intensities per channel (see
    :func:`draw_foreground`). Raises InputErrors that names every case and axis that no plan can be made from.
    """
    ordered = sorted(cases, key=lambda case: case.case_id)
    problems = [line for case in ordered for line in case.problems()]
    without = [case.case_id for case in ordered if case.spacing_mm is None]
    if 0 < len(without) < len(ordered):
        problems.append(
            f"{without[0]}: no spacing in mm, as in {len(without)} of {len(ordered)} cases; the others have one. "
            f"Give every image a spacing, or none."
        )
    if not ordered:
        problems.append(f"{dataset_name}: no usable case. Check the training list of the dataset.")
    elif not any(np.size(values) for values in samples_per_channel):
        problems.append(
            f"{dataset_name}: no foreground voxel in any of the {len(ordered)} cases. Check that the label values "
            f"declared for this dataset ({', '.join(f'{name} = {value}' for name, value in labels.items())}) occur in "
            f"its label maps."
        )
    if problems:
        raise InputErrors(*problems, f"{dataset_name}: {counted(len(problems), 'problem')}; no fingerprint was made.")
    kept = [math.prod(case.shape_after_crop) / math.prod(case.shape) for case in ordered]
    return seal(
        Fingerprint(
            dataset_name=dataset_name,
            channel_names=list(channel_names),
            labels=dict(labels),
            cases=ordered,
            intensities=[channel_intensity(values) for values in samples_per_channel],
            median_relative_size_after_cropping=float(np.median(kept)),
        )
    )


def seal(fingerprint: Fingerprint) -> Fingerprint:
    """The same fingerprint with ``content_hash`` computed from all its other fields."""
    blank = fingerprint.model_copy(update={"content_hash": ""})
    return blank.model_copy(update={"content_hash": blank.hash()})


def channel_intensity(values: np.ndarray) -> ChannelIntensity:
    """Statistics of one channel's sampled foreground intensities, in float64; percentiles interpolate linearly."""
    sample = np.asarray(values, dtype=np.float64).ravel()
    further = (5, 10, 25, 75, 90, 95)
    low, median, high, *others = np.percentile(sample, (0.5, 50.0, 99.5, *further))
    counts, _ = np.histogram(sample, bins=HISTOGRAM_BINS, range=(low, high) if high > low else None)
    return ChannelIntensity(
        mean=float(sample.mean()),
        median=float(median),
        std=float(sample.std()),
        min=float(sample.min()),
        max=float(sample.max()),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
        percentiles={str(number): float(value) for number, value in zip(further, others, strict=True)},
        histogram=counts.tolist(),
    )


def samples_per_case(n_cases: int, total: int = FOREGROUND_SAMPLES) -> int:
    """Foreground voxels to draw from each case: equal parts of ``total``, so that large cases do not outvote small."""
    return max(1, total // max(1, n_cases))


def draw_foreground(foreground: np.ndarray, count: int, *, case_id: str, seed: int = SEED) -> np.ndarray:
    """Draw ``count`` foreground voxels with replacement, the same ones for every channel.

    ``foreground`` is (channels, n_voxels); the result is (channels, count), or (channels, 0) for a case without
    foreground. The draw depends on (seed, case_id) alone, so any number of workers gives the same fingerprint.
    """
    n_voxels = foreground.shape[1]
    if n_voxels == 0:
        return foreground[:, :0]
    words = np.frombuffer(hashlib.sha256(case_id.encode()).digest()[:16], dtype=np.uint32)
    generator = np.random.default_rng([seed, *(int(word) for word in words)])
    return foreground[:, generator.integers(0, n_voxels, size=count)]
