"""Reading of one case, with every check that it must pass before anything is computed from it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medmamba.datasets.files import other_kind
from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.errors import InputError, InputErrors
from medmamba.geometry import grid_difference
from medmamba.images import LabelMap, MedicalImage, ReadOptions, format_of, read_channels, read_label_map
from medmamba.images.gate import brief
from medmamba.images.image import first_voxel, smallest_type

MOST_VALUES_SHOWN = 3


class LoadedCase(NamedTuple):
    """Image (C, i, j, k) and label map (i, j, k) of one case, on one grid."""

    image: MedicalImage
    labels: LabelMap | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was unusual and accepted, one line each."""
        return (*self.image.warnings, *(self.labels.warnings if self.labels else ()))


def load_case(spec: DatasetSpec, case: CaseSpec, options: ReadOptions | None = None) -> LoadedCase:
    """Reads a case and checks it: files, headers, voxels, channels, label values, and that all lie on one grid.

    Raises InputError or InputErrors with all that is wrong with this case, one line each, beginning with its id.
    """
    options = options or ReadOptions()
    name = brief(case.case_id)
    problems: list[str] = []
    image: MedicalImage | None = None
    labels: LabelMap | None = None
    try:
        where = [f"{name}: {spec.shown(path)}" for path in case.images]
        for path, place in zip(case.images, where, strict=True):
            _refuse_other_kind(path, place)
        image = read_channels(case.images, options, where=where).with_channels(len(spec.channels), where[0])
    except InputError as error:
        problems += error.args
    if case.label is not None:
        label_where = f"{name}: {spec.shown(case.label)}"
        try:
            _refuse_other_kind(case.label, label_where)
            labels = read_label_map(case.label, options, where=label_where)
        except InputError as error:
            problems += error.args
        else:
            labels = _black_and_white(labels, spec, label_where)
            problems += undeclared(labels, spec, label_where)
            problems += misnamed(labels, spec.labels, label_where)
            problems += _not_annotated(labels, spec, case, label_where)
    if image is not None:
        if image.channels != len(spec.channels):
            problems.append(
                f"{name}: {image.channels} channel(s) in {spec.shown(case.images[0])}, but dataset.json names "
                f"{len(spec.channels)} ({', '.join(spec.channels)}). Correct one of them."
            )
        elif len(image.constant_channels) == image.channels:
            value = float(image.array.flat[0])
            problems.append(
                f"{where[0]}: every voxel is {value:g}: the image is empty. Export it again or drop the case."
            )
        if twins := _equal_channels(image):
            a, b = (spec.channels[at] if image.channels == len(spec.channels) else str(at) for at in twins)
            warning = f"{name}: channels {brief(a)} and {brief(b)} hold the same voxels. Is one the copy of the other?"
            image = replace(image, warnings=(*image.warnings, warning))
        if labels is not None and any(_equal(channel, labels.array) for channel in image.array):
            problems.append(f"{name}: the image holds the label map. Give the image that belongs to it.")
        if labels is not None and (difference := grid_difference(image.grid, labels.grid)):
            placed = labels.on_grid_of(image, match_labels=options.match_labels)
            if placed is not None:
                how = "the label map was padded with background to the image's grid"
                if image.grid.shape == labels.grid.shape:
                    how = "so little that the label map was taken as it is"
                if image.grid.orientation != labels.grid.orientation:
                    how = "the label map's axes were reordered to the image's"
                warning = f"{name}: image and label map {difference}; {how}."
                labels = replace(placed, warnings=(*labels.warnings, warning))
            else:
                cure = (
                    "They are the same voxels stored in another order; allow that with match_labels."
                    if labels.on_grid_of(image, match_labels=True)
                    else f"Check {spec.shown(labels.path or case.images[0])}, or resample it onto the image."
                )
                if turned := [line for line in image.warnings if "orientation tag" in line]:
                    cure = turned[0]
                problems.append(f"{name}: image and label map {difference}. {cure}")
    if problems or image is None:
        raise InputErrors(*problems) if len(problems) > 1 else InputError(problems[0])
    return LoadedCase(image, labels)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two volumes hold the same values; most differ in the first of the slices that are looked at."""
    if a.shape != b.shape or not a.any():
        return False
    middle = a.shape[2] // 2
    return np.array_equal(a[..., middle], b[..., middle]) and np.array_equal(a, b)


def _equal_channels(image: MedicalImage) -> tuple[int, int] | None:
    """The first two channels that are equal and not constant."""
    pairs = combinations((c for c in range(image.channels) if c not in image.constant_channels), 2)
    flat = image.grid.affine is None  # a grey picture may be saved in colours
    return None if flat else next(((a, b) for a, b in pairs if _equal(image.array[a], image.array[b])), None)


def _refuse_other_kind(path: Path, where: str) -> None:
    if other := other_kind(path):
        raise InputError(f"{where}: no such file, but {brief(other)}. Convert it, so that all files are of one kind.")


def _black_and_white(labels: LabelMap, spec: DatasetSpec, where: str) -> LabelMap:
    """A flat mask in black (0) and white (255), where one structure with another value is declared: that one."""
    structures = [value for value in spec.labels.values() if value != 0]
    if labels.path is None or not format_of(labels.path).flat or len(structures) != 1 or 255 in spec.values:
        return labels
    if 255 not in (counts := labels.counts()) or not set(counts) <= {0, 255}:
        return labels
    array = np.where(labels.array == 255, structures[0], 0).astype(smallest_type(0, structures[0]))
    warning = f"{where}: a mask of 0 and 255; 255 was taken for {structures[0]}."
    return replace(labels, array=array, warnings=(*labels.warnings, warning))


def undeclared(labels: LabelMap, spec: DatasetSpec, where: str) -> list[str]:
    """One line per value that dataset.json does not declare (the first few), with its count and first voxel."""
    counts = labels.counts()
    strange = [value for value in counts if value not in spec.values]
    lines = []
    declared = ", ".join(map(str, spec.values[:8])) + (", ..." if len(spec.values) > 8 else "")
    for value in strange[:MOST_VALUES_SHOWN]:
        first = first_voxel(labels.array == value)
        lines.append(
            f"{where}: label value {value} in {counts[value]} voxel(s), the first at {first}, "
            f"is not declared (declared: {declared}). Add it to dataset.json or correct the label map."
        )
    if len(strange) > MOST_VALUES_SHOWN:
        rest = len(strange) - MOST_VALUES_SHOWN
        lines.append(f"{where}: {rest} more values are not declared. Check that this file is a label map.")
    return lines


def misnamed(labels: LabelMap, values: Mapping[str, int], where: str) -> list[str]:
    """One line per segment that occurs under another value than the label of its name (segmentations of 3D Slicer)."""
    known = {name.casefold(): value for name, value in values.items()}
    counts = labels.counts()
    return [
        f"{where}: its segment {brief(name)!r} has the value {value}, not {known[name.casefold()]}. Renumber its "
        "segments."
        for value, name in getattr(labels.header, "segments", ())
        if value in counts and known.get(name.casefold(), value) != value
    ]


def _not_annotated(labels: LabelMap, spec: DatasetSpec, case: CaseSpec, where: str) -> list[str]:
    """Errors for labels that occur although they are not listed as annotated in this case."""
    if case.annotated is None:
        return []
    counts = labels.counts()
    return [
        f"{where}: label {brief(name)!r} in {counts[value]} voxel(s), but it is not among the labels annotated in this "
        "case. Correct one of them."
        for name, value in spec.labels.items()
        if value != 0 and value in counts and name not in case.annotated
    ]


def foreground_voxels(counts: Mapping[int, int], spec: DatasetSpec) -> int:
    """Voxels of any structure: neither background nor ignored."""
    return sum(number for value, number in counts.items() if value not in (0, spec.ignore))
