"""The choice of one DICOM series from a folder, a tree of folders, or a zip of either.

The series is found by its SeriesInstanceUID, not by its folder. One series of images is taken; among several the
caller chooses, and the error lists them. Objects without a place in space (reports, segmentations, structure sets,
secondary captures) are left aside.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from medmamba.errors import InputError, unknown_name
from medmamba.images import ending_of
from medmamba.images.archive import is_zip, unpack
from medmamba.images.dicom import COLUMNS, ORIENTATION, POSITION, ROWS, SERIES, dicom_files, header_tags
from medmamba.images.gate import brief, shown

MODALITY, NUMBER, DESCRIPTION = "0008|0060", "0020|0011", "0008|103e"
MOST_LISTED = 12


@dataclass(frozen=True)
class Series:
    """The files of one series: its UID, modality, number, description, size of a slice, and the files."""

    uid: str
    modality: str
    number: str
    description: str
    size: tuple[int, int]
    files: tuple[Path, ...]

    def sentence(self) -> str:
        """For a list to choose from; the description is what the scanner's operator typed."""
        words = f" {shown(self.description)[:40]!r}" if self.description else ""
        columns, rows = self.size
        return f"{self.number or '-'}: {self.modality}{words} {len(self.files)} images {columns} x {rows}"


@contextmanager
def one_series(source: Path | str, choice: str | None = None, *, where: str | None = None) -> Iterator[Path]:
    """The folder of one series of ``source``, for as long as the block lasts.

    Args:
        source: a folder, a folder of folders, or a zip.
        choice: number of the series, or (the end of) its UID; needed when there are several.

    Raises InputError when there is no series, or several and no choice.
    """
    name = where or brief(str(source))
    with _unpacked(source, name) as root:
        found = series_below(root)
        if not found:
            raise InputError(f"{name}: no DICOM images in it. Give the folder or the zip of a series.")
        chosen = _choose(found, choice, name)
        if len(found) == 1 and {path.parent for path in chosen.files} == {root}:
            yield root
            return
        with TemporaryDirectory(prefix="medmamba-") as scratch:
            folder = Path(scratch, root.resolve().name)
            folder.mkdir()
            for count, path in enumerate(chosen.files):
                try:
                    os.link(path, folder / f"{count:06d}.dcm")
                except OSError:
                    shutil.copyfile(path, folder / f"{count:06d}.dcm")
            yield folder


@contextmanager
def opened(source: Path | str, series: str | None = None) -> Iterator[Path]:
    """A path that prediction can read: zips unpacked, one series chosen, everything else as it is.

    Several series in folders of their own are several cases, unless one is chosen; a zip of DICOM is one case.
    """
    name = brief(str(source))
    with _unpacked(source, name) as root:
        packed = root != Path(source)
        if series is not None or (packed and series_below(root)):
            with one_series(root, series, where=name) as folder:
                yield folder
            return
        inside = _innermost(root) if packed else root
        if packed and not any(ending_of(entry) or entry.is_dir() for entry in inside.iterdir()):
            raise InputError(
                f"{brief(Path(source).name)}: no image in it that is known. Give a zip of images or of a series."
            )
        yield inside


@contextmanager
def _unpacked(source: Path | str, where: str) -> Iterator[Path]:
    """A folder with the content and the name of a zip, for as long as the block lasts; else the source itself."""
    if not is_zip(source):
        yield Path(source)
        return
    with TemporaryDirectory(prefix="medmamba-") as scratch:
        name = Path(source).resolve().name
        folder = Path(scratch, name[:-4] if name.lower().endswith(".zip") else name)
        folder.mkdir()
        unpack(source, folder, where=where)
        yield folder


def _innermost(folder: Path) -> Path:
    """Zips often hold one folder that holds everything."""
    inside = list(folder.iterdir())
    return _innermost(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder


def series_below(root: Path) -> list[Series]:
    """The image series in a folder and all folders below it, by number."""
    members: dict[str, list[tuple[Path, dict[str, str]]]] = defaultdict(list)
    for folder, inner, _ in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for path in dicom_files(Path(folder)):
            tags = header_tags(path, shown(path.name), extra=(MODALITY, NUMBER, DESCRIPTION))
            if POSITION in tags and ORIENTATION in tags:
                members[tags.get(SERIES, "")].append((path, tags))
    found = []
    for uid, slices in members.items():
        tags, files = slices[0][1], tuple(path for path, _ in slices)
        size = _whole(tags.get(COLUMNS)), _whole(tags.get(ROWS))
        found.append(Series(uid, tags.get(MODALITY, "?"), tags.get(NUMBER, ""), tags.get(DESCRIPTION, ""), size, files))
    return sorted(found, key=lambda series: (_whole(series.number), series.uid))


def _choose(found: list[Series], choice: str | None, name: str) -> Series:
    if choice is None:
        if len(found) == 1:
            return found[0]
        lines = "; ".join(series.sentence() for series in found[:MOST_LISTED])
        more = f"; and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
        raise InputError(f"{name}: {len(found)} series ({lines}{more}). Choose one with --series NUMBER or its UID.")
    matching = [series for series in found if choice in (series.number, series.uid)]
    matching = matching or [series for series in found if series.uid.endswith(choice)]
    if not matching:
        raise unknown_name("series", choice, [series.number or series.uid for series in found])
    if len(matching) > 1:
        uids = ", ".join(series.uid[-24:] for series in matching)
        raise InputError(
            f"{name}: {len(matching)} series have the number {choice}. Choose by the end of a UID: {uids}."
        )
    return matching[0]


def _whole(text: str | None) -> int:
    return int(text) if text and text.strip().isdecimal() else 0
