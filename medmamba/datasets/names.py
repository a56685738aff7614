"""Rules for the names in a dataset: case ids, pairs of them that could be confused, and paths of files."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from medmamba.errors import InputError
from medmamba.images.gate import shown

LONGEST_BYTES = 200  # of 255 in a file name: endings and the name of a file in the making need the rest


def case_id_problem(case_id: str) -> str | None:
    """Why this cannot be a case id, in words; None if it can."""
    if not case_id or case_id in (".", ".."):
        return "the case has no name"
    if not case_id.isprintable():
        return "the case name holds control characters; rename the file"
    if set(case_id) & set("/\\"):
        return "the case name holds a slash or backslash; rename the file"
    if len(case_id.encode()) > LONGEST_BYTES:
        return f"the case name has more than {LONGEST_BYTES} bytes; use a shorter one"
    return None


def clashes(case_ids: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of ids that are the same, or differ only in case or in how accents are encoded."""
    seen: dict[str, str] = {}
    pairs = []
    for case_id in case_ids:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", case_id).casefold())
        if key in seen:
            pairs.append((seen[key], case_id))
        else:
            seen[key] = case_id
    return pairs


def inside(folder: Path, relative: str) -> Path:
    """The path of a file that a dataset names, which must lie in the dataset's own folder.

    Raises:
        InputError: outside of the folder, or leading out of it by "..".
    """
    path = PurePosixPath(relative.replace("\\", "/"))
    if not relative or "\0" in relative:
        raise InputError("the path is empty")
    for base in (folder.absolute(), folder.resolve()):
        path = path.relative_to(base) if path.is_relative_to(base) else path
    if path.is_absolute() or (len(relative) > 1 and relative[1] == ":") or ".." in path.parts:
        raise InputError(f"the path {shown(relative)!r} leads out of the dataset's folder; use paths inside it")
    return folder.joinpath(*path.parts)


def files_of_case(
    folder: Path, images: Sequence[str], label: str | None, *, allow_outside: bool = False
) -> tuple[tuple[Path, ...], Path | None]:
    """Paths of the images and the label map that a dataset names for a case.

    Raises:
        InputError: no image is given, or a path leads out of the folder and may not.
    """
    if not images:
        raise InputError("no image is given")

    def path(name: str) -> Path:
        return folder / name if allow_outside else inside(folder, name)

    return tuple(path(name) for name in images), None if label is None else path(label)
