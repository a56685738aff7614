"""nnU-Net v2 raw folders: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, and dataset.json.

Source: documentation/dataset_format.md, region_based_training.md and ignore_label.md of nnU-Net 2.8 (MIC-DKFZ).
Class names in the file (overwrite_image_reader_writer) are never imported, and variables in paths never replaced.
"""

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from medmamba.datasets.description import (
    FILE,
    Count,
    Description,
    Entry,
    case_id_problem,
    case_of_files,
    channel_names,
    check_ids,
    label_values,
    parse,
    refuse,
)
from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.errors import InputError, as_text
from medmamba.images import ending_of
from medmamba.images.cases import CHANNEL
from medmamba.images.gate import brief, shown


class _Listed(Entry):
    """One entry of the explicit list of cases."""

    images: list[str]
    label: str | None = None


class _NnUnet(Description):
    """dataset.json of nnU-Net v2."""

    license: str = ""
    channel_names: dict[str, str]
    regions_class_order: list[int] | None = None
    num_training: Count | None = Field(None, alias="numTraining")
    file_ending: str
    dataset: dict[str, _Listed] | None = None


def read_nnunet(folder: Path, raw: dict[str, Any], *, allow_outside: bool = False) -> DatasetSpec:
    """The dataset that an nnU-Net v2 dataset.json and the folders beside it describe.

    Raises InputErrors for keys that are missing or of the wrong kind, all in one pass, each with its place.
    """
    file = parse(_NnUnet, raw)
    problems: list[str] = []
    channels = channel_names(file.channel_names, problems)
    labels, regions, order, ignore = _labels(file, problems)
    ending = "." + file.file_ending.removeprefix(".")
    if ending_of("x" + ending) != ending.lower():
        problems.append(f"{FILE}: file_ending: {file.file_ending[:20]!r} is not that of a known kind of image.")
    refuse(folder, problems)
    if file.dataset is None:
        cases = _find(folder / "imagesTr", ending, len(channels), problems)
        cases = [replace(case, label=folder / "labelsTr" / (case.file_stem + ending)) for case in cases]
    else:
        cases = _listed(folder, file.dataset, problems, allow_outside)
    if not cases and not problems:
        problems.append(f"{FILE}: no training case: no CASE_0000{ending} in imagesTr. Add the images.")
    if file.num_training not in (None, len(cases)):
        problems += _unnumbered(folder / "imagesTr") if file.dataset is None else []
        problems.append(
            f"{FILE}: numTraining is {file.num_training}, but there are {len(cases)} training cases. Is the copy "
            "complete? Correct the number or add the cases."
        )
    test: list[CaseSpec] = []
    if (folder / "imagesTs").is_dir():
        test = _find(folder / "imagesTs", ending, len(channels), problems)
    check_ids(cases, problems)
    if both := sorted({case.case_id for case in cases} & {case.case_id for case in test}):
        problems.append(
            f"{brief(both[0], 60)}: in imagesTr and in imagesTs ({len(both)} such case(s)). Keep each in one of them."
        )
    return replace(
        file.about(folder, "nnunet"),
        licence=file.licence or file.license,
        channels=channels,
        labels=labels,
        cases=tuple(cases),
        test=tuple(test),
        regions=regions,
        region_order=order,
        ignore=ignore,
        problems=tuple(problems),
        warnings=tuple(file.unused_keys()),
    )


def _labels(
    file: _NnUnet, problems: list[str]
) -> tuple[dict[str, int], dict[str, tuple[int, ...]], tuple[int, ...], int | None]:
    """Values by name, regions by name, the order in which regions are written, and the ignore value."""
    plain = {name: value for name, value in file.labels.items() if not isinstance(value, list)}
    lists = {name: value for name, value in file.labels.items() if isinstance(value, list)}
    ignore = plain.pop("ignore", None)
    if ignore is not None and (isinstance(ignore, bool) or not isinstance(ignore, int) or ignore < 1):
        problems.append(f"{FILE}: labels: 'ignore' has the value {brief(repr(ignore), 40)}; a whole number is needed.")
        ignore = None
    for name, values in lists.items():
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
            problems.append(
                f"{FILE}: labels: {brief(name)!r} = {brief(repr(values), 40)}: whole numbers above 0 are needed."
            )
            return {}, {}, (), None
    declared: dict[str, Any] = plain
    regions: dict[str, tuple[int, ...]] = {}
    order: tuple[int, ...] = ()
    if lists:  # then every name but background is a region; values without a name of their own get one
        regions = {n: (value,) for n, value in plain.items() if n != "background" and isinstance(value, int)}
        regions |= {name: tuple(sorted(set(values))) for name, values in lists.items()}
        regions = {name: regions[name] for name in file.labels if name in regions}
        named = {values[0]: name for name, values in regions.items() if len(values) == 1}
        every = sorted({value for values in regions.values() for value in values})
        declared = {"background": plain.get("background", 0), **{named.get(v, f"label {v}"): v for v in every}}
        order = tuple(file.regions_class_order or ())
    labels = label_values(declared, problems)
    if ignore is not None and ignore in labels.values():
        problems.append(f"{FILE}: labels: 'ignore' = {ignore}: another label has this value.")
    if len(order) != len(regions) or len(set(order)) != len(order):
        problems.append(
            f"{FILE}: regions_class_order: {list(order)}: {len(regions)} different values are needed, one for each of "
            f"{', '.join(brief(name) for name in regions)[:80]}."
        )
    elif not set(order) <= {value for values in regions.values() for value in values}:
        problems.append(f"{FILE}: regions_class_order: {list(order)} holds values that are in no region.")
    else:
        problems += _hidden_regions(regions)
    return labels, regions, order, ignore


def _hidden_regions(regions: dict[str, tuple[int, ...]]) -> list[str]:
    """A problem for each region of which nothing remains, because one that contains it is written after it."""
    named = list(regions.items())
    return [
        f"{FILE}: labels: {brief(later)!r} contains {brief(name)!r} and is written after it, so that nothing of it "
        "remains. Name the larger region first."
        for number, (name, values) in enumerate(named)
        for later, others in named[number + 1 :]
        if set(values) <= set(others)
    ]


def _unnumbered(folder: Path) -> list[str]:
    """A problem for images whose names do not say which channel they are."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    images = [name for name in names if (end := ending_of(name)) and not CHANNEL.match(name[: -len(end)])]
    images = [name for name in images if not name.startswith(".")]
    if not images:
        return []
    many = f" ({len(images)} such images)" if len(images) > 1 else ""
    return [f"{folder.name}: {brief(images[0])} has no channel number{many}. Name it CASE_0000{ending_of(images[0])}."]


def _find(folder: Path, ending: str, channels: int, problems: list[str]) -> list[CaseSpec]:
    """Cases of a folder of CASE_0000 files with their files in the order of channels, sorted by id."""
    if not folder.is_dir():
        problems.append(f"{folder.name}: no such folder. Put the images there, as CASE_0000{ending}.")
        return []
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for name in sorted(name for name in os.listdir(folder) if not name.startswith(".")):
        match = CHANNEL.match(as_text(name[: -len(ending)])) if name.lower().endswith(ending.lower()) else None
        if match:
            found[match[1]][int(match[2])] = folder / name
        elif (other := ending_of(name)) and CHANNEL.match(name[: -len(other)]):
            problems.append(f"{folder.name}: {brief(name)} is a {other} file, but file_ending is {ending}. Convert it.")
    cases = []
    for case_id, files in found.items():
        name = brief(case_id, 60)
        if problem := case_id_problem(case_id):
            problems.append(f"{folder.name}: {name}: {problem}.")
            continue
        # One file may hold all channels (2D RGB images); whether it does is seen when it is read.
        wanted = set(range(channels))
        missing, extra = sorted(wanted - set(files)), sorted(set(files) - wanted)
        if missing and set(files) != {0}:
            gone = ", ".join(f"{case_id}_{number:04d}{ending}" for number in missing[:3])
            problems.append(
                f"{name}: channel {', '.join(map(str, missing[:3]))} missing: no {shown(gone)} in {folder.name}."
            )
        if extra:
            problems.append(
                f"{name}: channel {', '.join(map(str, extra[:3]))} in {folder.name}, but dataset.json names channels 0 "
                f"to {channels - 1}. Remove the file or name the channel."
            )
        if not extra and (not missing or set(files) == {0}):
            cases.append(CaseSpec(case_id, tuple(files[number] for number in sorted(files))))
    return sorted(cases, key=lambda case: case.case_id)


def _listed(folder: Path, dataset: dict[str, _Listed], problems: list[str], allow_outside: bool) -> list[CaseSpec]:
    """Cases of the explicit list, in its order."""
    cases = []
    for case_id, entry in dataset.items():
        where = f"{FILE}: dataset: {brief(case_id, 60)}"
        try:
            if problem := case_id_problem(case_id):
                raise InputError(problem)
            cases.append(case_of_files(folder, entry.images, entry.label, case_id, allow_outside=allow_outside))
        except InputError as error:
            problems.append(f"{where}: {error}.")
            continue
        if entry.label is None:
            problems.append(f"{where}: a training case without a label map. Add it.")
    return cases
