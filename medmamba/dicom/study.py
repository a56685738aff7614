"""The choice of one DICOM series from a folder, a tree of folders, or a zip of either.

The series is found by its SeriesInstanceUID, not by its folder. One series of images is taken; among several the
caller chooses, and the error lists them. A series of several stacks or phases is chosen with its part. Objects that are
not slices (reports, segmentations, structure sets, captures, localizers) are ignored and counted.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medmamba.disk.atomic import write_json
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import ConfigError, InputError
from medmamba.images import dicom_headers as headers
from medmamba.images import ending_of, stem_of
from medmamba.images.archive import is_zip, unpack
from medmamba.images.cases import find_cases
from medmamba.images.dicom_headers import (
    CHOSEN_FRAMES,
    Tags,
    ignored,
    is_localizer,
    series_in,
    sorted_out,
    without_localizers,
)
from medmamba.images.dicom_parts import LARGEST
from medmamba.images.dicom_series import Series
from medmamba.images.dicom_slices import Slice
from medmamba.images.gate import brief, shown


@contextmanager
def one_series(
    source: Path | str, choice: str | None = None, *, on_message: Callable[[str], None] = lambda line: None
) -> Iterator[Path]:
    """The folder of one series of ``source``, for as long as the block lasts.

    Args:
        source: a folder, a folder of folders, or a zip.
        choice: number of the series, or (the end of) its UID; needed when there are several. ":2" behind it is its
            second stack or phase, ":largest" its largest; "largest" alone is the largest of all.
        on_message: receives the list of what was ignored.

    Raises InputError when there is no series, or several and no choice.
    """
    name = brief(str(source))
    with _unpacked(source, name) as root:
        found, others = series_below(root)
        with folder_of_one(root, found, others, choice, name, on_message) as folder:
            yield folder


@contextmanager
def folder_of_one(
    root: Path, found: list[Series], others: str, choice: str | None, name: str, on_message: Callable[[str], None]
) -> Iterator[Path]:
    """The folder of one of the series that :func:`series_below` found in ``root``; ``others`` is what else is there."""
    if not found:
        raise InputError(
            f"{name}: no DICOM images in it{f' ({others})' if others else ''}. Give the folder or zip of a series."
        )
    series, part = _choose(found, choice, name)
    if series.problem:
        raise InputError(series.problem)
    files = list(dict.fromkeys(piece.path for piece in part))
    if len(found) == 1 and len(series.parts) < 2 and (files == [root] or {path.parent for path in files} == {root}):
        yield root  # its reader says what else is in the folder
        return
    unused = "; ".join(other.sentence() for other in found if other is not series)
    on_message(f"{name}: {series.sentence()}" + "".join(f"; {text}" for text in (others, unused) if text))
    with scratch_folder() as scratch:
        folder = Path(scratch, stem_of(root.resolve()) if root.is_file() else root.resolve().name)
        folder.mkdir()
        chosen: dict[str, list[int]] = {}
        unique = len({path.name for path in files}) == len(files)
        for count, path in enumerate(files):
            target = folder / (path.name if unique else f"{count:06d}_{path.name[-80:]}")
            try:
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)
            if frames := [piece.frame for piece in part if piece.path == path and piece.frame]:
                chosen[target.name] = frames
        if chosen and len(series.parts) > 1:
            write_json(folder / CHOSEN_FRAMES, chosen)
        yield folder


@contextmanager
def opened(
    source: Path | str, series: str | None = None, on_message: Callable[[str], None] = lambda line: None
) -> Iterator[Path]:
    """A path that prediction can read: zips unpacked, one series chosen, everything else as it is.

    Several series in folders of their own are several cases, unless one is chosen; a zip of DICOM is one case.
    """
    name = brief(str(source))
    with _unpacked(source, name) as root:
        packed = root != Path(source)
        found, others = series_below(root) if series is not None or packed or _scattered(root) else ([], "")
        if series is not None or found:
            with folder_of_one(root, found, others, series, name, on_message) as folder:
                yield folder
            return
        inside = innermost(root) if packed else root
        if packed and not any(ending_of(entry) or entry.is_dir() for entry in inside.iterdir()):
            raise InputError(
                f"{brief(Path(source).name)}: no image of a known format. Give a zip of images or of a series."
            )
        yield inside


def _scattered(root: Path) -> bool:
    """Whether a folder has its slices deeper than its folders of images, or one series in several of those.

    Raises InputError for such a series beside other images.
    """
    try:
        listed = [path for case in find_cases(root) for path in case.paths]
    except InputError:
        return root.is_dir()
    parts: dict[str, list[str]] = defaultdict(list)
    for path in listed if len(listed) > 1 else []:
        if path.is_dir() and (uid := series_in(path)):
            parts[uid].append(shown(path.name))
    divided = next((names for names in parts.values() if len(names) > 1), None)
    if divided and len(divided) < len(listed):
        raise InputError(
            f"{shown(root)}: {divided[0]} and {divided[1]} hold slices of one series, and there are other images. "
            "Choose a series with --series (? lists them), or put its slices into one folder."
        )
    return divided is not None


@contextmanager
def _unpacked(source: Path | str, where: str) -> Iterator[Path]:
    """A folder with the content and the name of a zip, for as long as the block lasts; else the source itself."""
    if not is_zip(source):
        yield Path(source)
        return
    with scratch_folder() as scratch:
        name = Path(source).resolve().name
        folder = Path(scratch, name[:-4] if name.lower().endswith(".zip") else name)
        folder.mkdir()
        unpack(source, folder, where=where)
        yield folder


def innermost(folder: Path) -> Path:
    """Zips often hold one folder that holds everything."""
    inside = list(folder.iterdir())
    return innermost(inside[0]) if len(inside) == 1 and inside[0].is_dir() else folder


def series_below(root: Path) -> tuple[list[Series], str]:
    """The image series in a folder and all folders below it (or in a file), by number, and a text of all other files.

    Links to folders are followed once. A damaged file is a problem of the series in its folder. Raises InputError when
    there are only damaged files.
    """
    members: dict[str, dict[Path, Tags]] = defaultdict(dict)
    aside: dict[str, list[str]] = {}
    damaged: dict[Path, InputError] = {}
    folders: set[Path] = set()
    files: set[Path] = set()

    def unreadable(error: OSError) -> None:
        aside.setdefault("folder that cannot be opened", []).append(Path(str(error.filename)).name)

    walked = os.walk(root, onerror=unreadable, followlinks=True) if root.is_dir() else [(os.fspath(root), [], [])]
    for folder, inner, _ in walked:
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if (real := Path(folder).resolve()) in folders:
            inner.clear()
            continue
        folders.add(real)
        slices, others = sorted_out(Path(folder), shown(os.path.relpath(folder, root.parent)), damaged)
        for path, tags in slices.items():
            if (real := path.resolve()) not in files:
                files.add(real)
                members[tags.get(headers.SERIES, "")][path] = tags
        for kind, names in others.items():
            aside.setdefault(kind, []).extend(names)
    found = []
    for slices in members.values():
        series = Series.of(without_localizers(slices, aside), shown(root.name))
        beside = {path.parent for path in series.files}
        problem = next((str(error) for path, error in damaged.items() if path.parent in beside), series.problem)
        found.append(replace(series, problem=problem))
    if not found and damaged:
        raise next(iter(damaged.values()))
    if damaged:
        aside["damaged"] = [path.name for path in damaged]
    return sorted(found, key=lambda series: (_whole(series.number), series.uid)), ignored(aside)


def _choose(found: list[Series], choice: str | None, name: str) -> tuple[Series, list[Slice]]:
    """A series and one of its parts; an empty one where it cannot be read."""
    listed = f"{len(found)} series ({'; '.join(series.sentence() for series in found)})"
    asked, _, part = (choice or "").partition(":") if choice != LARGEST else ("", "", LARGEST)
    images = [series for series in found if not is_localizer(series.tags)] or found
    matching = [series for series in found if asked in (series.number, series.uid)] if asked else images
    matching = matching or [series for series in found if series.uid.endswith(asked)]
    if not matching:
        raise ConfigError(f"{name}: unknown series {asked!r}. It contains {listed}. Choose one of them.")
    if len(matching) > 1 and choice != LARGEST:
        raise InputError(f"{name}: {listed}. Choose one with --series NUMBER, or the end of its UID.")
    if part == LARGEST and (parts := [(series, part) for series in matching for part in series.parts]):
        return max(parts, key=lambda pair: len(pair[1]))
    series = matching[0]
    if not series.parts:
        return series, []
    number = _whole(part or ("1" if len(series.parts) == 1 else ""))
    if not 1 <= number <= len(series.parts):
        raise InputError(
            f"{name}: choose a stack or phase of the series, as --series {asked or series.number}:1: {listed}."
        )
    return series, series.parts[number - 1]


def _whole(text: str | None) -> int:
    return int(text) if text and text.strip().isdecimal() else 0
