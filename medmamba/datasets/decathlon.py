"""The layout of the Medical Segmentation Decathlon: dataset.json lists every image with its label map.

MONAI's data lists are of this kind (``fold`` of a case, ``validation``, ``testing``), and nnU-Net v1's folders, whose
list says CASE.nii.gz for the files CASE_0000.nii.gz, CASE_0001.nii.gz, ...

Source: http://medicaldecathlon.com, dataset.json of the ten tasks; Antonelli et al., Nat Commun 13:4128 (2022).
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field

from medmamba.datasets.description import FILE, Count, Entry, ListedCases, case_of_files, check_ids, parse
from medmamba.datasets.spec import GROUP_KEYS, VALIDATION, CaseSpec, DatasetSpec, named_apart
from medmamba.errors import InputError
from medmamba.images import stem_of
from medmamba.images.gate import brief, shown


class _Pair(Entry):
    """One entry of the training list, and of the test list where it is not a bare path."""

    image: str | list[str]
    label: str | None = None
    annotated: list[str] | None = None
    group: str | int | None = Field(None, validation_alias=AliasChoices(*GROUP_KEYS))
    fold: int | None = None


class _Decathlon(ListedCases):
    """dataset.json of the Decathlon."""

    num_training: Count | None = Field(None, alias="numTraining")
    num_test: Count | None = Field(None, alias="numTest")
    training: list[_Pair]
    validation: list[_Pair] = Field(default_factory=list)
    test: list[str | _Pair] = Field(default_factory=list)
    testing: list[str | _Pair] = Field(default_factory=list)


def read_decathlon(folder: Path, raw: dict[str, Any]) -> DatasetSpec:
    """The dataset that a parsed dataset.json with a training list describes.

    Raises InputErrors for keys that are missing or of the wrong kind, all in one pass, each with its place.
    """
    file = parse(_Decathlon, raw)
    spec = file.dataset(folder, "decathlon")
    problems: list[str] = []
    warnings = file.unused_keys()
    lists = ("training", "validation", "test", "testing")
    found = [_cases(spec, file, key, problems, warnings) for key in lists]
    training = named_apart([*found[0], *(replace(case, fold=VALIDATION) for case in found[1])])
    files = {case.images for case in training}
    test = named_apart([*found[2], *(case for case in found[3] if case.images not in files)])
    for case in training:
        if case.label is None:
            problems.append(f"{brief(case.case_id)}: a training case without a label map. Add it in {FILE}.")
        for label in case.annotated or ():
            if label not in spec.labels:
                problems.append(
                    f"{brief(case.case_id)}: the annotated label {brief(label)!r} is not declared in {FILE}."
                )
    _check_counts(file, problems, warnings)
    check_ids([*training, *test], problems)
    return replace(spec, cases=tuple(training), test=tuple(test), problems=tuple(problems), warnings=tuple(warnings))


def _cases(spec: DatasetSpec, file: _Decathlon, key: str, problems: list[str], warnings: list[str]) -> list[CaseSpec]:
    """The cases of one list of dataset.json; invalid entries are added to ``problems``."""
    cases = []
    for number, entry in enumerate(getattr(file, key)):
        pair = _Pair.model_validate({"image": entry}) if isinstance(entry, str) else entry
        where = f"{FILE}: {key}[{number}]"
        try:
            names = [pair.image] if isinstance(pair.image, str) else pair.image
            case = case_of_files(spec.folder, names, pair.label)
        except InputError as error:
            problems.append(f"{where}: {error}.")
            continue
        images, label = case.images, case.label
        stem = stem_of(images[0])
        ending = images[0].name[len(stem) :]
        first = images[0].with_name(f"{stem}_0000{ending}")
        if not os.path.exists(images[0]) and os.path.exists(first):  # nnU-Net v1
            images = tuple(first.with_name(f"{stem}_{n:04d}{ending}") for n in range(len(spec.channels)))
        if label is not None and stem_of(label) != stem and label.parent != images[0].parent:
            warnings.append(
                f"{where}: the label map {shown(label.name)} has another name than its image {brief(stem)}."
            )
        annotated = None if pair.annotated is None else tuple(pair.annotated)
        group = None if pair.group is None else str(pair.group)
        cases.append(replace(case, images=images, annotated=annotated, group=group, fold=pair.fold))
    return cases


def _check_counts(file: _Decathlon, problems: list[str], warnings: list[str]) -> None:
    if not file.training:
        problems.append(f"{FILE}: the training list is empty. Add the training cases.")
    if file.num_training not in (None, len(file.training), len(file.training) + len(file.validation)):
        problems.append(
            f"{FILE}: numTraining is {file.num_training}, but {len(file.training)} training cases are listed. "
            "Is the copy complete? Correct the number or the list."
        )
    if file.num_test not in (None, len(file.test)):
        warnings.append(f"{FILE}: numTest is {file.num_test}, but {len(file.test)} test cases are listed.")
