"""Which files of an output folder medmamba wrote, proved by a hidden record of their SHA-256.

    OUT/.medmamba-<machine>     a line per written file: SHA-256, name relative to OUT as JSON string

Only a file that the record proves is replaced or removed without --overwrite; one that was changed since is the user's.
The line is added before the file takes its name, so a killed process leaves no file of ours without proof. Lines are
only ever added, in one write each: several processes may share the record of their machine.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medmamba.disk.atomic import BINARY_NO_LINK, before_rename, explained
from medmamba.disk.leftovers import this_machine
from medmamba.errors import InputError

RECORD = ".medmamba-"
OVERWRITE = "Give another output folder, or use --overwrite to replace it."
DATASET_FOLDERS = ("imagesTr", "labelsTr", "imagesTs")
"""Folders of a dataset, beside its dataset.json, that no output belongs into."""
_LINE = re.compile(r'([0-9a-f]{64}) ("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class OwnFiles:
    """The files of ``folder`` that medmamba wrote; with ``overwrite`` all others may be replaced too."""

    folder: Path
    overwrite: bool = False

    def refuse_foreign(self, paths: Iterable[Path], cure: str = OVERWRITE) -> None:
        """Raises InputError if one of ``paths``, which are to be written, exists and is not proved to be ours.

        A folder is in the way of a file with ``overwrite`` too.
        """
        paths = list(paths)
        if folder := next((path for path in paths if path.is_dir() and not path.is_symlink()), None):
            raise InputError(
                f"{_shown(folder)}: a folder, and a file of that name is to be written. Remove or rename it."
            )
        if self.overwrite:
            return
        known = self._hashes()
        if foreign := [path for path in paths if os.path.lexists(path) and not self._proved(path, known)]:
            raise refusal(foreign, cure)

    def owns(self, path: Path) -> bool:
        """Whether the record proves that medmamba wrote this file as it is."""
        return self._proved(path, self._hashes())

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove those of ``paths`` that are proved to be ours."""
        if present := [path for path in paths if os.path.lexists(path)]:
            known = self._hashes()
            for path in present:
                if self._proved(path, known):
                    path.unlink(missing_ok=True)

    def knows(self, path: Path) -> bool:
        """Whether the record names this file at all; earlier versions kept no record."""
        return os.path.relpath(path, self.folder) in self._hashes()

    def adopt(self, paths: Iterable[Path]) -> None:
        """Record files that something else proved to be ours, as they are."""
        for path in paths:
            if path.is_file() and not path.is_symlink():
                self._record(path, path)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record every file that is written below the folder in this block, by this thread."""
        token = before_rename.set(self._record)
        try:
            yield
        finally:
            before_rename.reset(token)

    def _record(self, part: Path, path: Path) -> None:
        name = os.path.relpath(path, self.folder)
        if name.startswith(os.pardir):
            return
        line = (
            f"\n{file_sha256(part)} {json.dumps(name)}".encode()
        )  # the line end comes first: it ends a line cut short
        record = self.folder / f"{RECORD}{this_machine()}"
        with explained(record):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | BINARY_NO_LINK
            file = os.open(record, flags, 0o644)
            try:
                if line + b"\n" not in os.read(file, os.fstat(file).st_size) + b"\n":
                    os.write(file, line)
            finally:
                os.close(file)

    def _hashes(self) -> dict[str, set[str]]:
        known: dict[str, set[str]] = {}
        for record in sorted(self.folder.glob(f"{RECORD}*")):
            with explained(record):
                lines = record.read_text("ascii", "replace").splitlines()
            for found in filter(None, map(_LINE.fullmatch, lines)):
                known.setdefault(json.loads(found[2]), set()).add(found[1])
        return known

    def _proved(self, path: Path, known: dict[str, set[str]]) -> bool:
        hashes = known.get(os.path.relpath(path, self.folder))
        return hashes is not None and path.is_file() and not path.is_symlink() and file_sha256(path) in hashes


def refusal(foreign: Sequence[Path], cure: str = OVERWRITE) -> InputError:
    """The error for files that are not proved to be ours."""
    more = f" (and {len(foreign) - 1} more)" if foreign[1:] else ""
    return InputError(f"{_shown(min(foreign))}{more}: not written by medmamba, or changed since. {cure}")


def refuse_dataset_folder(output: Path) -> None:
    """Raises InputError if ``output`` is or lies in a dataset's folder of images or label maps."""
    place = real_path(output)
    for folder in (place, *place.parents):
        if folder.name in DATASET_FOLDERS and (folder.parent / "dataset.json").is_file():
            raise InputError(f"{_shown(output)}: a folder of the dataset {folder.parent}. Give another output folder.")


def refuse_replacing(output: Path, inputs: Iterable[Path]) -> None:
    """Raises InputError if the folder ``output``, which is to be replaced as a whole, is or holds one of the inputs."""
    place = real_path(output)
    for path in inputs:
        if place in (real_path(path), *real_path(path).parents):
            raise InputError(
                f"{_shown(output)}: would be replaced, and holds {_shown(path)}. Give another output folder."
            )


def refuse_existing(path: Path, *, overwrite: bool = False) -> None:
    """Raises InputError if the single file that a command is to write exists already."""
    if os.path.lexists(path) and not overwrite:
        raise InputError(
            f"{_shown(path)}: exists already. Give the name of a new file, or use --overwrite to replace it."
        )


def real_path(path: Path | str) -> Path:
    """The absolute path without links; links that lead back to themselves stay (``Path.resolve`` raises for them)."""
    return Path(os.path.realpath(path))


def _shown(path: Path) -> str:
    text = os.fspath(path)
    return text if text.isprintable() else text.encode("unicode_escape", "backslashreplace").decode("ascii")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
