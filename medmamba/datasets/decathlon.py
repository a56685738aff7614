"""The layout of the Medical Segmentation Decathlon: dataset.json lists every image with its label map.

Source: http://medicaldecathlon.com, dataset.json of the ten tasks; Antonelli et al., Nat Commun 13:4128 (2022).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from medmamba.datasets.description import (
    Description,
    Entry,
    channel_names,
    check_ids,
    ignore_value,
    label_values,
    parse,
)
from medmamba.datasets.names import case_id_problem, inside
from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.errors import InputError, InputErrors
from medmamba.images import stem_of
from medmamba.images.gate import brief, shown


class _Pair(Entry):
    """One entry of the training list, and of the test list where it is not a bare path."""

    image: str | list[str]
    label: str | None = None
    annotated: list[str] | None = None
    group: str | None = None


class _Decathlon(Description):
    """dataset.json of the Decathlon."""

    modality: dict[str, str] | None = None
    ignore: int | None = None
    num_training: int | None = Field(None, alias="numTraining")
    num_test: int | None = Field(None, alias="numTest")
    training: list[_Pair]
    test: list[str | _Pair] = Field(default_factory=list)


def read_decathlon(folder: Path, raw: dict[str, Any]) -> DatasetSpec:
    """The dataset that a parsed dataset.json with a training list describes.

    Raises:
        InputErrors: keys are missing or of the wrong kind, all in one pass, each with its place.
    """
    where = "dataset.json"
    file = parse(_Decathlon, raw, where)
    problems: list[str] = []
    warnings: list[str] = []
    channels = channel_names(file.modality or file.channel_names, where, problems)
    labels = label_values(file.labels, where, problems)
    ignore = ignore_value(labels, file.ignore, where, problems)
    if problems:
        raise InputErrors(problems, summary=f"{shown(folder)}: {len(problems)} problem(s) in dataset.json.")
    cases = [_case(folder, pair, f"training[{n}]", problems, warnings) for n, pair in enumerate(file.training)]
    pairs = [_Pair(image=entry) if isinstance(entry, str) else entry for entry in file.test]
    test = [_case(folder, pair, f"test[{n}]", problems, warnings) for n, pair in enumerate(pairs)]
    training = tuple(case for case in cases if case is not None)
    for case in training:
        if case.label is None:
            problems.append(f"{brief(case.case_id)}: a training case without a label map. Add it in {where}.")
        for label in case.annotated or ():
            if label not in labels:
                problems.append(
                    f"{brief(case.case_id)}: the annotated label {brief(label)!r} is not declared in {where}."
                )
    _check_counts(file, where, problems, warnings)
    check_ids([*training, *(case for case in test if case is not None)], problems)
    return DatasetSpec(
        **file.about(folder),
        layout="decathlon",
        channels=channels,
        labels=labels,
        cases=training,
        test=tuple(case for case in test if case is not None),
        ignore=ignore,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _case(folder: Path, pair: _Pair, entry: str, problems: list[str], warnings: list[str]) -> CaseSpec | None:
    where = f"dataset.json: {entry}"
    names = [pair.image] if isinstance(pair.image, str) else pair.image
    try:
        if not names:
            raise InputError("no image is given")
        images = tuple(inside(folder, name) for name in names)
        label = inside(folder, pair.label) if pair.label is not None else None
    except InputError as error:
        problems.append(f"{where}: {error}.")
        return None
    case_id = stem_of(images[0])
    if problem := case_id_problem(case_id):
        problems.append(f"{where}: {brief(case_id, 60)}: {problem}.")
        return None
    if label is not None and stem_of(label) != case_id:
        warnings.append(f"{where}: the label map {shown(label.name)} has another name than its image {brief(case_id)}.")
    annotated = None if pair.annotated is None else tuple(pair.annotated)
    return CaseSpec(case_id, images, label, annotated, pair.group)


def _check_counts(file: _Decathlon, where: str, problems: list[str], warnings: list[str]) -> None:
    if not file.training:
        problems.append(f"{where}: the training list is empty. Add the training cases.")
    if file.num_training not in (None, len(file.training)):
        problems.append(
            f"{where}: numTraining is {file.num_training}, but {len(file.training)} training cases are listed. "
            "Is the copy complete? Correct the number or the list."
        )
    if file.num_test not in (None, len(file.test)):
        warnings.append(f"{where}: numTest is {file.num_test}, but {len(file.test)} test cases are listed.")
