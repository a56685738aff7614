"""`medmamba ensemble`: the mean of probabilities that predictions of the same cases have stored in several folders.

OUT/<case>.nii.gz            the mask of the mean
OUT/report.json              labels; what made the probabilities, as it stands in the report.json of each folder
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medmamba.disk.atomic import make_folder, write_json
from medmamba.disk.lock import FolderLock
from medmamba.disk.own_files import OwnFiles, file_sha256, real_path, refuse_dataset_folder
from medmamba.errors import ConfigError, InputError
from medmamba.geometry import grid_difference
from medmamba.images import (
    LabelMap,
    ReadOptions,
    read_image,
    read_label_map,
    write_image,
    write_label_map,
    written_files,
)
from medmamba.images.cases import PROBABILITIES
from medmamba.inference.folder.case_job import SCHEMA_VERSION
from medmamba.inference.joint import refuse_differing, structures_of
from medmamba.inference.options import EnsembleOptions
from medmamba.inference.restore import labels_of
from medmamba.models.output_channels import OutputChannels
from medmamba.plans.json_record import as_written, read_stored
from medmamba.plans.schema import Reading

KIND, CURE = "prediction report of this version", "Give folders that `medmamba predict --probabilities` wrote."


@dataclass(frozen=True)
class _Report:
    schema_version: Literal[2]
    model: dict[str, Any]
    cases: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Stored:
    """A folder of predictions: output channels by name with their labels, and of each case the mask's file and the
    hashes of the probabilities; none by an earlier version."""

    folder: Path
    model: dict[str, Any]
    labels: dict[str, int]
    regions: dict[str, list[str]] | None
    order: list[str]
    masks: dict[str, str]
    hashes: dict[str, list[str]]
    reading: ReadOptions
    """How its images were read; so are its masks, which have their spacings."""

    @property
    def channels(self) -> list[str]:
        """Names of the channels in the order of its files."""
        return ["background", *self.structures] if self.regions is None else list(self.regions)

    @property
    def structures(self) -> list[str]:
        return [name for name, value in self.labels.items() if value]

    def probabilities(self, case: str) -> Path:
        """The file of a case; raises InputError where there is none, or not the one of the report."""
        found = sorted(path for path in self.folder.iterdir() if path.name.startswith(f"{case}{PROBABILITIES}."))
        if not found:
            raise InputError(f"{self.folder}: no probabilities of {case}. Predict again with --probabilities.")
        made = self.model.get("probabilities") is not False
        if not made or self.hashes[case] not in ([], [file_sha256(path) for path in written_files(found[0])]):
            raise InputError(
                f"{found[0]}: not the probabilities of the mask in report.json, but older or changed since. Predict "
                "again with --probabilities."
            )
        return found[0]


def average_folders(
    folders: Sequence[str | Path],
    output: str | Path,
    options: EnsembleOptions | None = None,
    *,
    on_item: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **changes: Any,
) -> list[str]:
    """Write a mask for each case of the folders, and return the names of the cases.

    Raises InputError, before anything is written, unless all folders have the same labels or regions and the same
    cases, and ConfigError for a case whose probabilities lie on different grids.
    """
    options = EnsembleOptions.of(options, **changes)
    stored = [_stored(Path(folder)) for folder in folders]
    target = Path(output)
    _refuse_different(stored, target)
    refuse_dataset_folder(target)
    first = stored[0]
    heads, values = _heads(first), np.array([0, *(first.labels[name] for name in first.structures)])
    own = OwnFiles(target, options.overwrite)
    files = {case: [one.probabilities(case) for one in stored] for case in first.masks}
    kept = {case: target / files[case][0].name for case in files} if options.probabilities else {}
    own.refuse_foreign([*(target / mask for mask in first.masks.values()), *kept.values(), target / "report.json"])
    make_folder(target)
    records = {}
    with ExitStack() as stack:
        stack.enter_context(FolderLock(target))
        stack.enter_context(own.recording())
        for number, (case, mask) in enumerate(first.masks.items()):
            on_item("average", number, len(files))
            like = read_label_map(first.folder / mask, first.reading)
            mean = _mean(files[case], stored, like)
            labels = values[labels_of(mean, heads)]
            write_label_map(target / mask, labels, like=like)
            if case in kept:
                write_image(kept[case], mean, like=like.grid)
            records[case] = {"mask": mask, "mask_sha256": [file_sha256(target / mask)], "empty": not labels.any()}
        on_item("average", len(files), len(files))
        report = {"schema_version": SCHEMA_VERSION, "model": _common(first.model), "cases": records}
        write_json(target / "report.json", {**report, "averaged": [one.model for one in stored]})
    return list(files)


def _common(model: dict[str, Any]) -> dict[str, Any]:
    """What all that are averaged share, by which masks are understood: labels, regions, how files are read."""
    facts: dict[str, Any] = {
        name: model[name] for name in ("labels", "regions", "region_order", "ignore") if name in model
    }
    return {**facts, "settings": {"reading": model.get("settings", {}).get("reading", {})}}


def _stored(folder: Path) -> _Stored:
    path = folder / "report.json"
    report = read_stored(path, _Report, KIND, CURE)
    with as_written(path, KIND, CURE):
        regions = report.model.get("regions")
        labels = {str(name): int(value) for name, value in report.model["labels"].items()}
        order = [str(name) for name in report.model.get("region_order") or ()]
        reading = ReadOptions.of(Reading.model_validate(report.model.get("settings", {}).get("reading", {})))
        masks = {case: Path(str(record["mask"])).name for case, record in report.cases.items() if record["mask"]}
        hashes = {case: [str(one) for one in report.cases[case].get("probabilities_sha256", ())] for case in masks}
        if regions is not None and len(order) != len(regions):
            raise ValueError("region_order is missing")
    if not masks:
        raise InputError(f"{folder}: no case with a mask of its own name. {CURE}")
    return _Stored(folder, report.model, labels, regions, order, masks, hashes, reading)


def _refuse_different(stored: Sequence[_Stored], target: Path) -> None:
    first, *others = stored
    if not others:
        raise InputError(f"{first.folder}: one folder is no ensemble. Give two or more.")
    real = [real_path(one.folder) for one in stored]
    if twice := next((one.folder for number, one in enumerate(stored) if real[number] in real[:number]), None):
        raise InputError(f"{twice}: named twice. Name each folder once.")
    if real_path(target) in real:
        raise InputError(f"{target}: output and input are the same folder. Choose another output folder.")
    for other in others:
        ours, theirs = (structures_of(one.labels, one.regions, one.order) for one in (first, other))
        refuse_differing(ours, theirs, str(first.folder), str(other.folder))
        if lacking := sorted(first.masks.keys() ^ other.masks.keys()):
            where = other.folder if lacking[0] in first.masks else first.folder
            raise InputError(f"{where}: {lacking[0]} is not among its cases. Predict the same images into each folder.")


def _heads(stored: _Stored) -> OutputChannels:
    """What the channels mean; the larger probability decides between regions that no label joins."""
    labels = ["background", *stored.structures]
    if stored.regions is None:
        return OutputChannels.of_labels(labels)
    members = tuple(tuple(sorted(labels.index(part) for part in parts)) for parts in stored.regions.values())
    written = tuple(labels.index(name) for name in stored.order)
    names, swap = tuple(stored.regions), tuple(range(len(labels) + 1))
    return OutputChannels(names, True, members, written, None, swap, tuple(range(len(names))))


def _mean(files: Sequence[Path], stored: Sequence[_Stored], like: LabelMap) -> NDArray[np.float32]:
    """The mean probabilities (classes, i, j, k), channels in the order of the first folder."""
    mean: NDArray[np.float32] | None = None
    for path, one in zip(files, stored, strict=True):
        wanted = (len(one.channels), *like.grid.shape)
        image = read_image(path, replace(one.reading, max_voxels=max(one.reading.max_voxels, prod(wanted))))
        if image.array.shape != wanted:
            sizes = ["x".join(map(str, shape)) for shape in (image.array.shape, wanted)]
            raise ConfigError(f"{path}: is {sizes[0]}, where {sizes[1]} is expected. Predict the same images again.")
        if difference := grid_difference(image.grid, like.grid):
            raise ConfigError(f"{path}: it and {like.path} {difference}. Predict the same images again.")
        array = image.array[[one.channels.index(name) for name in stored[0].channels]]
        mean = array if mean is None else np.add(mean, array, out=mean)
    assert mean is not None
    return mean / np.float32(len(files))
