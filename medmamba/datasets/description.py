"""The keys that all kinds of dataset.json share: channels by index, labels by name; errors name the key's path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medmamba.datasets.names import clashes
from medmamba.datasets.spec import CaseSpec
from medmamba.errors import InputErrors
from medmamba.images.gate import brief

Model = TypeVar("Model", bound=BaseModel)
TRIED = re.compile(r"^(str|list\[.*\]|_[A-Z]\w*)$")
LONGEST_NAME = 100


class Entry(BaseModel):
    """A part of a JSON file; types are taken strictly, keys that only people read are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Description(Entry):
    """The keys of dataset.json that all layouts share."""

    name: str = ""
    description: str = ""
    reference: str = ""
    licence: str = ""
    release: str = ""
    channel_names: dict[str, str] | None = None
    labels: dict[str, Any]

    def about(self, folder: Path) -> dict[str, Any]:
        """What :class:`~medmamba.datasets.spec.DatasetSpec` says about a dataset as a whole."""
        return {
            "name": brief(self.name or folder.name, 100),
            "folder": folder,
            "description": self.description,
            "reference": self.reference,
            "licence": self.licence,
            "release": self.release,
        }


def parse(model: type[Model], raw: Any, where: str) -> Model:
    """A parsed JSON value as a pydantic model, with all errors at once and the path of each field."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = []
        seen = set()
        for item in error.errors():
            # Where one of several kinds is possible, pydantic names each kind it tried; the first says enough.
            keys = [part for part in item["loc"] if isinstance(part, int) or not TRIED.match(part)]
            path = "".join(f"[{key}]" if isinstance(key, int) else f".{brief(key, 40)}" for key in keys).lstrip(".")
            if path in seen:
                continue
            seen.add(path)
            value = "" if item["type"] == "missing" else f" (found {brief(repr(item['input']))})"
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
    for key, name in channels.items():
        if not fit_to_print(name):
            problems.append(
                f"{where}: channel {brief(key, 10)}: {brief(name)!r} is not a name. Use a short, printable one."
            )
    return tuple(channels[key] for key in sorted(channels, key=lambda key: (len(key), key)))


def fit_to_print(name: str) -> bool:
    """Whether a name can stand in tables and on terminals."""
    return bool(name) and name.isprintable() and len(name) <= LONGEST_NAME


def label_values(labels: dict[str, Any], where: str, problems: list[str]) -> dict[str, int]:
    """Values by name, background first, from {"0": "background"} or {"background": 0}."""
    result: dict[str, int] = {}
    for key, entry in labels.items():
        name, value = (entry, key) if isinstance(entry, str) else (key, entry)
        if isinstance(value, str):
            value = int(value) if value.isdecimal() and value.isascii() and len(value) < 10 else value
        if not fit_to_print(name):
            problems.append(f"{where}: labels: {brief(name)!r} is not a name. Use a short, printable one.")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
            problems.append(
                f"{where}: labels: {brief(key)!r} has the value {brief(repr(entry))}; "
                "a whole number from 0 on is needed."
            )
        elif name in result or value in result.values():
            problems.append(f"{where}: labels: {brief(name)!r} = {value}: a name and a value may occur only once.")
        else:
            result[name] = value
    if 0 not in result.values() and not problems:
        if "background" in result:
            problems.append(f"{where}: labels: background must have the value 0, not {result['background']}.")
        result["background"] = 0
    if len(result) < 2 and not problems:
        problems.append(f"{where}: labels: only background is declared. Add the structures to be segmented.")
    return dict(sorted(result.items(), key=lambda item: item[1]))


def ignore_value(labels: dict[str, int], given: int | None, where: str, problems: list[str]) -> int | None:
    """The value of voxels that are not to be learned from: of the key "ignore", or of a label of that name.

    Such a label is taken out of ``labels``.
    """
    named = labels.pop("ignore", None)
    if named is not None and given is not None and named != given:
        problems.append(f"{where}: ignore: {given}, but the label 'ignore' has the value {named}. Keep one of them.")
    value = given if given is not None else named
    if value is not None and (value < 1 or value in labels.values()):
        problems.append(f"{where}: ignore: {value}: a whole number above 0 that no label has is needed.")
    return value


def check_ids(cases: list[CaseSpec], problems: list[str]) -> None:
    """Adds a problem for each two cases that have the same name, or nearly."""
    for first, second in clashes(case.case_id for case in cases):
        how = "occurs twice" if first == second else f"differs from {brief(first)} only in case or accents"
        problems.append(f"{brief(second)}: the case name {how}. Each case needs a name of its own.")
