"""dataset.json of any layout: strict JSON, keys that all layouts share, rules for names and paths."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from medmamba.datasets.spec import CaseSpec, DatasetSpec
from medmamba.errors import InputError, InputErrors, as_text, counted
from medmamba.images import stem_of
from medmamba.images.gate import brief, read_small, shown
from medmamba.plans.json_record import strict_json

Model = TypeVar("Model", bound=BaseModel)
TRIED = re.compile(r"^(str|int|list\[.*\]|_[A-Z]\w*)$")
LONGEST_NAME = 100
LONGEST_CASE_ID = 200  # bytes, of 255 in a file name: endings and the name of a file in the making need the rest
ESCAPED_BYTE = re.compile(r"\\udc[89a-f][0-9a-f]")
"""A byte of a file name that is not UTF-8, as a case id holds it."""
FILE = "dataset.json"
LARGEST_BYTES = 10 * 2**20
DEEPEST = 32
"""Largest number of nested levels in a JSON file."""


def read_json(path: Path | str) -> Any:
    """The value in a UTF-8 JSON file (a byte order mark is accepted).

    Raises InputError for no readable file, more than 10 MiB, no JSON, duplicate keys, NaN, and deep nesting.
    """
    where = shown(path)
    raw = read_small(path, LARGEST_BYTES, where)
    try:
        value = strict_json(raw.decode("utf-8-sig"))
        if _depth(value) > DEEPEST:
            raise RecursionError
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not JSON: {error.msg.lower()} at line {error.lineno}, column {error.colno}. Correct it there."
        ) from None
    except RecursionError:
        raise InputError(f"{where}: nested deeper than {DEEPEST} levels. Check that it is the right file.") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}. Correct it.") from None
    return value


def _depth(value: Any) -> int:
    """Number of lists and objects around the deepest value."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


NO_CHANGE = {"tensorImageSize", "relase", "license", "author", "url", "cases", "overwrite_image_reader_writer"}
"""Keys that are ignored without a warning, because they change no result."""


def _whole(value: Any) -> Any:
    """A whole number that was written as text or with a decimal point; any other value as it is."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole)]
"""How many cases there are; nothing is computed from it."""


class Entry(BaseModel):
    """A part of a JSON file; types are taken strictly, keys that nothing uses are kept for :meth:`unused_keys`."""

    model_config = ConfigDict(strict=True, extra="allow")

    def unused_keys(self) -> list[str]:
        """A warning for each key of this file and of its entries that is not used."""
        found = Counter(repr(brief(key, 40)) for key in set(self.model_extra or ()) - NO_CHANGE)
        for name, value in self:
            for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
                extra = entry.model_extra or () if isinstance(entry, Entry) else ()
                found.update(f"{brief(key, 40)!r} of an entry of {name!r}" for key in extra)
        return [f"{FILE}: the key {key} is not used ({number} time(s))." for key, number in sorted(found.items())]


class Description(Entry):
    """The keys of dataset.json that all layouts share."""

    name: str = ""
    description: str = ""
    reference: str = ""
    licence: str = ""
    release: str = ""
    channel_names: dict[str, str] | None = None
    labels: dict[str, Any]

    def about(self, folder: Path, layout: str) -> DatasetSpec:
        """The dataset as a whole, without channels, labels and cases."""
        texts = {name: getattr(self, name) for name in ("description", "reference", "licence", "release")}
        return DatasetSpec(brief(self.name or folder.name, 100), folder, layout, (), {}, (), **texts)


class ListedCases(Description):
    """dataset.json with a list of cases, its own (Decathlon) or a table beside it."""

    modality: dict[str, str] | None = None
    ignore: int | None = None

    def dataset(self, folder: Path, layout: str) -> DatasetSpec:
        """The dataset without its cases; raises InputErrors for channels and labels that cannot be."""
        problems: list[str] = []
        channels = channel_names(self.modality or self.channel_names, problems)
        if self.modality and self.channel_names and self.modality != self.channel_names:
            problems.append(f"{FILE}: modality and channel_names differ. Keep one of them.")
        labels = label_values(self.labels, problems)
        ignore = ignore_value(labels, self.ignore, problems)
        refuse(folder, problems)
        return replace(self.about(folder, layout), channels=channels, labels=labels, ignore=ignore)


def refuse(where: Path, problems: Sequence[str], rest: str = f" in {FILE}.") -> None:
    """Raises InputErrors if there are problems; ``rest`` is the end of its summary."""
    if problems:
        raise InputErrors(*problems, f"{shown(where)}: {counted(len(problems), 'problem')}{rest}")


def parse(model: type[Model], raw: Any, where: str = FILE) -> Model:
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
        summary = f"{where}: {counted(len(problems), 'problem')}; correct them there."
        raise InputErrors(*problems, summary) from None


def channel_names(channels: dict[str, str] | None, problems: list[str]) -> tuple[str, ...]:
    """Names by index, from {"0": "T1", "1": "T2"}."""
    if not channels:
        problems.append(f'{FILE}: no channels. Add "modality": {{"0": "MRI"}}, one entry per channel.')
        return ()
    if set(channels) != {str(n) for n in range(len(channels))}:
        found = ", ".join(sorted(channels))
        problems.append(f"{FILE}: channels are numbered {found}; they must be 0 to {len(channels) - 1} without a gap.")
    for key, name in channels.items():
        if not fit_to_print(name):
            problems.append(
                f"{FILE}: channel {brief(key, 10)}: {brief(name)!r} is not a name. Use a short, printable one."
            )
    return tuple(channels[key] for key in sorted(channels, key=lambda key: (len(key), key)))


def fit_to_print(name: str) -> bool:
    """Whether a name can stand in tables and on terminals."""
    return bool(name) and name.isprintable() and len(name) <= LONGEST_NAME


def label_values(labels: dict[str, Any], problems: list[str]) -> dict[str, int]:
    """Values by name, background first, from {"0": "background"} or {"background": 0}."""
    result: dict[str, int] = {}
    for key, entry in labels.items():
        reverse = isinstance(entry, str) and (key.isdecimal() or not entry.isdecimal())
        name, value = (entry, key) if reverse else (key, entry)
        if reverse and key.isdecimal() and entry.isdecimal() and key != entry:
            problems.append(
                f"{FILE}: labels: {brief(key)!r}: {brief(entry)!r}: which is the value? Give it as a number."
            )
        if isinstance(value, str):
            value = int(value) if value.isdecimal() and value.isascii() and len(value) < 10 else value
        if not fit_to_print(name):
            problems.append(f"{FILE}: labels: {brief(name)!r} is not a name. Use a short, printable one.")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
            problems.append(
                f"{FILE}: labels: {brief(key)!r} has the value {brief(repr(entry))}; "
                "a whole number from 0 on is needed."
            )
        elif name in result or value in result.values():
            problems.append(f"{FILE}: labels: {brief(name)!r} = {value}: a name and a value may occur only once.")
        else:
            result[name] = value
    if 0 not in result.values() and not problems:
        if "background" in result:
            problems.append(f"{FILE}: labels: background must have the value 0, not {result['background']}.")
        result["background"] = 0
    if len(result) < 2 and not problems:
        problems.append(f"{FILE}: labels: only background is declared. Add the structures to be segmented.")
    return dict(sorted(result.items(), key=lambda item: item[1]))


def ignore_value(labels: dict[str, int], given: int | None, problems: list[str]) -> int | None:
    """The value of voxels that are not to be learned from: of the key "ignore", or of a label of that name.

    Such a label is taken out of ``labels``.
    """
    named = labels.pop("ignore", None)
    if named is not None and given is not None and named != given:
        problems.append(f"{FILE}: ignore: {given}, but the label 'ignore' has the value {named}. Keep one of them.")
    value = given if given is not None else named
    if value is not None and (value < 1 or value in labels.values()):
        problems.append(f"{FILE}: ignore: {value}: a whole number above 0 that no label has is needed.")
    return value


def check_ids(cases: list[CaseSpec], problems: list[str]) -> None:
    """Adds a problem for each case with the name of another, or one that file systems confuse with it."""
    seen: dict[str, str] = {}
    for case_id in (case.case_id for case in cases):
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", case_id).casefold())
        if key in seen:
            same, first = seen[key] == case_id, brief(seen[key])
            how = "occurs twice" if same else f"differs from {first} only in case or accents"
            problems.append(f"{brief(case_id)}: the case name {how}. Each case needs a name of its own.")
        seen.setdefault(key, case_id)


def case_id_problem(case_id: str) -> str | None:
    """Why this cannot be a case id, in words; None if it can."""
    if not case_id or case_id in (".", ".."):
        return "the case has no name"
    if not case_id.isprintable():
        return "the case name holds control characters; rename the file"
    if set(ESCAPED_BYTE.sub("", case_id)) & set("/\\"):
        return "the case name holds a slash or backslash; rename the file"
    if len(case_id.encode()) > LONGEST_CASE_ID:
        return f"the case name has more than {LONGEST_CASE_ID} bytes; use a shorter one"
    return None


def inside(folder: Path, relative: str) -> Path:
    """The path of a file that a dataset names; raises InputError where it does not lie in the dataset's own folder."""
    path = PurePosixPath(re.sub(rf"(?!{ESCAPED_BYTE.pattern})\\", "/", relative))
    if not relative or "\0" in relative:
        raise InputError("the path is empty")
    for base in (folder.absolute(), folder.resolve()):
        path = path.relative_to(base) if path.is_relative_to(base) else path
    if path.is_absolute() or (len(relative) > 1 and relative[1] == ":") or ".." in path.parts:
        raise InputError(f"the path {shown(relative)!r} leads out of the dataset's folder; use paths inside it")
    return folder.joinpath(*path.parts)


def case_of_files(
    folder: Path, images: Sequence[str], label: str | None, case_id: str | None = None, *, allow_outside: bool = False
) -> CaseSpec:
    """A case of the image files and the label map that a dataset names, called after its first image by default.

    Raises InputError when no image is given, a path leads out of the folder and may not, or it cannot be called that.
    """
    if not images:
        raise InputError("no image is given")

    def path(name: str) -> Path:
        if not allow_outside:
            return inside(folder, name)
        found = folder / name
        return folder / name.replace("\\", "/") if "\\" in name and not os.path.lexists(found) else found

    files = tuple(map(path, images))
    name = as_text(stem_of(files[0]) if case_id is None else case_id)
    case = CaseSpec(name, files, None if label is None else path(label))
    if problem := case_id_problem(case.case_id):
        raise InputError(f"{brief(case.case_id, 60)}: {problem}")
    return case
