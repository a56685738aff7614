"""The layout of the Medical Segmentation Decathlon: dataset.json lists every image with its label map.

Source: http://medicaldecathlon.com, dataset.json of the ten tasks; Antonelli et al., Nat Commun 13:4128 (2022).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medmamba.datasets.names import case_id_problem, clashes, inside
from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.errors import InputError, InputErrors
from medmamba.images import stem_of
from medmamba.images.gate import shown

Model = TypeVar("Model", bound=BaseModel)


class _Pair(BaseModel):
    """One entry of the training list, and of the test list where it is not a bare path."""

    model_config = ConfigDict(strict=True, extra="ignore")

    image: str | list[str]
    label: str | None = None
    annotated: list[str] | None = None
    group: str | None = None


class _File(BaseModel):
    """dataset.json; keys that only people read are not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str = ""
    description: str = ""
    reference: str = ""
    licence: str = ""
    release: str = ""
    modality: dict[str, str] | None = None
    channel_names: dict[str, str] | None = None
    labels: dict[str, Any]
    ignore: int | None = None
    num_training: int | None = Field(None, alias="numTraining")
    num_test: int | None = Field(None, alias="numTest")
    training: list[_Pair]
    test: list[str | _Pair] = []


def read_decathlon(folder: Path, raw: dict[str, Any]) -> DatasetSpec:
    """The dataset that a parsed dataset.json with a training list describes.

    Raises:
        InputErrors: keys are missing or of the wrong kind, all in one pass, each with its place.
    """
    where = "dataset.json"
    file = parse(_File, raw, where)
    problems: list[str] = []
    warnings: list[str] = []
    channels = channel_names(file.modality or file.channel_names, where, problems)
    labels = label_values(file.labels, where, problems)
    if problems:
        raise InputErrors(problems, summary=f"{shown(folder)}: {len(problems)} problem(s) in dataset.json.")
    cases = [_case(folder, pair, f"training[{n}]", problems, warnings) for n, pair in enumerate(file.training)]
    pairs = [_Pair(image=entry) if isinstance(entry, str) else entry for entry in file.test]
    test = [_case(folder, pair, f"test[{n}]", problems, warnings) for n, pair in enumerate(pairs)]
    training = tuple(case for case in cases if case is not None)
    for case in training:
        if case.label is None:
            problems.append(f"{shown(case.case_id)}: a training case without a label map. Add it in {where}.")
        for label in case.annotated or ():
            if label not in labels:
                problems.append(f"{shown(case.case_id)}: the annotated label {label!r} is not declared in {where}.")
    _check_counts(file, where, problems, warnings)
    check_ids([*training, *(case for case in test if case is not None)], problems)
    return DatasetSpec(
        name=file.name or folder.name,
        folder=folder,
        layout="decathlon",
        channels=channels,
        labels=labels,
        cases=training,
        test=tuple(case for case in test if case is not None),
        ignore=file.ignore,
        description=file.description,
        reference=file.reference,
        licence=file.licence,
        release=file.release,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def parse(model: type[Model], raw: Any, where: str) -> Model:
    """A parsed JSON value as a pydantic model, with all errors at once and the path of each field."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
            value = "" if item["type"] == "missing" else f" (found {shown(repr(item['input'])[:60])})"
            problems.append(f"{where}: {path or 'the file'}: {item['msg'].lower()}{value}.")
        raise InputErrors(problems, summary=f"{where}: {len(problems)} problem(s); correct them there.") from None


def channel_names(channels: dict[str, str] | None, where: str, problems: list[str]) -> tuple[str, ...]:
    """Names by index, from {"0": "T1", "1": "T2"}."""
    if not channels:
        problems.append(f'{where}: no channels. Add "modality": {{"0": "MRI"}}, one entry per channel.')
        return ()
    if set(channels) != {str(n) for n in range(len(channels))}:
        found = ", ".join(sorted(channels))
        problems.append(f"{where}: channels are numbered {found}; they must be 0 to {len(channels) - 1} without a gap.")
    return tuple(channels[key] for key in sorted(channels, key=lambda key: (len(key), key)))


def label_values(labels: dict[str, Any], where: str, problems: list[str]) -> dict[str, int]:
    """Values by name, background first, from {"0": "background"} or {"background": 0}."""
    result: dict[str, int] = {}
    for key, entry in labels.items():
        name, value = (entry, key) if isinstance(entry, str) else (key, entry)
        if isinstance(value, str):
            value = int(value) if value.isdecimal() and value.isascii() and len(value) < 10 else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            problems.append(
                f"{where}: labels: {shown(key)!r} has the value {shown(repr(entry))}; "
                "a whole number from 0 on is needed."
            )
        elif name in result or value in result.values():
            problems.append(f"{where}: labels: {shown(name)!r} = {value}: a name and a value may occur only once.")
        else:
            result[name] = value
    if 0 not in result.values() and not problems:
        if "background" in result:
            problems.append(f"{where}: labels: background must have the value 0, not {result['background']}.")
        result["background"] = 0
    if len(result) < 2 and not problems:
        problems.append(f"{where}: labels: only background is declared. Add the structures to be segmented.")
    return dict(sorted(result.items(), key=lambda item: item[1]))


def check_ids(cases: list[CaseSpec], problems: list[str]) -> None:
    """Adds a problem for each two cases that have the same name, or nearly."""
    for first, second in clashes(case.case_id for case in cases):
        how = "occurs twice" if first == second else f"differs from {shown(first)} only in case or accents"
        problems.append(f"{shown(second)}: the case name {how}. Each case needs a name of its own.")


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
        problems.append(f"{where}: {shown(case_id)[:60]}: {problem}.")
        return None
    if label is not None and stem_of(label) != case_id:
        warnings.append(f"{where}: the label map {shown(label.name)} has another name than its image {shown(case_id)}.")
    annotated = None if pair.annotated is None else tuple(pair.annotated)
    return CaseSpec(case_id, images, label, annotated, pair.group)


def _check_counts(file: _File, where: str, problems: list[str], warnings: list[str]) -> None:
    if not file.training:
        problems.append(f"{where}: the training list is empty. Add the training cases.")
    if file.num_training not in (None, len(file.training)):
        problems.append(
            f"{where}: numTraining is {file.num_training}, but {len(file.training)} training cases are listed. "
            "Is the copy complete? Correct the number or the list."
        )
    if file.num_test not in (None, len(file.test)):
        warnings.append(f"{where}: numTest is {file.num_test}, but {len(file.test)} test cases are listed.")
