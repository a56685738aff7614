"""The cases that a file, a folder or a list of files holds, with the file names of their masks."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medmamba.errors import InputError, as_text, counted
from medmamba.images import format_of, list_images, mask_ending, stem_of, written_files
from medmamba.images.gate import shown

CHANNEL = re.compile(r"^(.+)_(\d{4})$", re.DOTALL)
PROBABILITIES = "_probabilities"
UNCERTAINTY = "_uncertainty"
"""Behind the name of a case: the file of its probabilities, beside its mask."""


@dataclass(frozen=True)
class ImageCase:
    """One case: its id, its files (one, or one per channel in order) and the file name of its mask."""

    case_id: str
    paths: tuple[Path, ...]
    output_name: str

    def outputs(self, folder: Path) -> list[Path]:
        """Paths of its mask in ``folder``: one file, or header and voxels."""
        return written_files(folder / self.output_name)


def find_cases(
    source: str | Path | Sequence[Path],
    channel_files: int = 0,
    on_message: Callable[[str], None] = lambda line: None,
) -> list[ImageCase]:
    """The cases of a file, a DICOM series, a folder of images (hidden files skipped) or a list of them, sorted by id.

    Args:
        channel_files: files that the channels of a case may be spread over, of a model or dataset that has a file per
            channel (``Plan.channel_files``): ``X_0000.nii.gz, X_0001.nii.gz, ...`` are case X then. Any other number
            is part of the name, as it always is for 0 and for folders.
        on_message: receives the list of ignored files of a folder.

    Raises InputError when there is none, when a channel is missing, or when two files give one case.
    """
    paths = _listed(Path(source), on_message) if isinstance(source, str | Path) else list(source)
    if not paths:
        raise InputError("The list of images is empty. Give at least one.")
    names = dict(zip(paths, case_names(paths), strict=True))
    numbered = {path: match for path in paths if not path.is_dir() and (match := CHANNEL.search(names[path]))}
    beyond = {match[1] for match in numbered.values() if int(match[2]) >= channel_files}
    channels: dict[str, dict[int, Path]] = {}
    for path in paths:
        match = numbered.get(path)
        split = match is not None and match[1] not in beyond
        case_id, index = (match[1], int(match[2])) if match is not None and split else (names[path], 0)
        files = channels.setdefault(case_id, {})
        if index in files:
            raise InputError(f"{case_id}: {files[index].name} and {path.name} are the same image. Remove one of them.")
        files[index] = path
    cases: list[ImageCase] = []
    for case_id, files in sorted(channels.items()):
        if sorted(files) != list(range(len(files))):
            gap = next(index for index in range(len(files) + 1) if index not in files)
            raise InputError(f"{case_id}: channel {gap} is missing ({case_id}_{gap:04d}). Add the file.")
        paths_in_order = tuple(files[index] for index in sorted(files))
        cases.append(ImageCase(case_id, paths_in_order, case_id + mask_ending(files[0])))
    folder, count = Counter(case.paths[0].parent for case in cases).most_common(1)[0]
    if count > 1 and isinstance(source, str | Path) and folder not in (Path(source), Path(source).parent):
        raise InputError(f"{folder}: {count} images in one of several folders. Give a folder with one image per case.")
    return cases


def numbers_in_names(cases: Sequence[ImageCase], channel_files: int) -> str:
    """What to say about images X_0000, X_0001, ... that are not channels of a model with a file per channel; or ""."""
    apart = [case.case_id for case in cases if CHANNEL.search(case.case_id) and stem_of(case.paths[0]) == case.case_id]
    if not apart or not channel_files:
        return ""
    files = "one file" if channel_files == 1 else f"{channel_files} files"
    listed = shown(", ".join(apart[:3])) + (", ..." if len(apart) > 3 else "")
    what = "with a number, taken as cases of their own and not as channels, because a case of this model has"
    return f"{listed}: {counted(len(apart), 'image')} {what} {files}."


def case_names(paths: Sequence[Path]) -> list[str]:
    """A name for each image: of its file or, where several have the same name, of the part of the path that differs.

    ``case_1/imaging.nii.gz, case_2/imaging.nii.gz`` are case_1 and case_2.
    """
    folders = [path.resolve() if path.is_dir() else path for path in paths]
    names = [as_text(path.name if path.is_dir() else stem_of(path)) for path in folders]
    if len(set(names)) == len(names) or len({path.parent for path in folders}) == 1:
        return names
    parts = [[*map(as_text, path.parent.parts), name] for path, name in zip(folders, names, strict=True)]
    width = max(map(len, parts))
    columns = list(zip(*([*part[:-1], *[""] * (width - len(part)), part[-1]] for part in parts), strict=True))
    telling = [column for column in columns if len(set(column)) > 1]
    return ["_".join(filter(None, row)) for row in zip(*telling, strict=True)]


def part_of(cases: Sequence[ImageCase], part: tuple[int, int]) -> list[ImageCase]:
    """The cases of part i of n (counted from 1): every n-th, so that parts are alike and disjoint."""
    number, count = part
    return list(cases[number - 1 :: count])


def _listed(source: Path, on_message: Callable[[str], None]) -> list[Path]:
    if source.is_file():
        format_of(source)  # raises for other kinds of files
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: not found. Give an image, a folder of images or a DICOM folder.")
    try:
        return list_images(source, on_message)
    except InputError:
        found: list[Path] = []
        series: set[str] = set()
        for folder, _, _ in sorted(os.walk(source)):  # a folder for each case
            with suppress(InputError):
                listed = list_images(folder, on_message, deep=True)
                found += [path for path in listed if path.is_file()]
                series |= {shown(os.path.relpath(path, source)) for path in listed if path.is_dir()}
        if not found:
            raise
        if series:
            on_message(
                f"{shown(source)}: ignored: {counted(len(series), 'DICOM folder')} ({', '.join(sorted(series)[:3])})."
            )
        return found
