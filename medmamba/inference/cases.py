"""Which cases a file, a folder or a list of files holds, and what their masks are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmamba.errors import InputError
from medmamba.images import ENDINGS, MedicalImage, ending_of, read_channels, stem_of

_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class ImageCase:
    """One case: its id, its files (one, or one per channel in order) and the file name of its mask."""

    case_id: str
    paths: tuple[Path, ...]
    output_name: str


def find_cases(source: str | Path | Sequence[Path]) -> list[ImageCase]:
    """The cases of a file, a folder (hidden files skipped) or a list of files, sorted by id.

    ``X_0000.nii.gz, X_0001.nii.gz, ...`` are the channels of case X (nnU-Net's naming), ``X.nii.gz`` is case X.
    Raises InputError when there is none, when a channel is missing, or when two files give one case.
    """
    paths = _listed(Path(source)) if isinstance(source, str | Path) else list(source)
    channels: dict[str, dict[int, Path]] = {}
    for path in paths:
        stem = stem_of(path)
        match = _CHANNEL.search(stem)
        case_id, index = (stem[: match.start()], int(match.group(1))) if match else (stem, 0)
        files = channels.setdefault(case_id, {})
        if index in files:
            raise InputError(
                f"{case_id}: {files[index].name} and {path.name} are the same channel. Remove one of them."
            )
        files[index] = path
    cases = []
    for case_id, files in sorted(channels.items()):
        if sorted(files) != list(range(len(files))):
            gap = next(index for index in range(len(files) + 1) if index not in files)
            raise InputError(f"{case_id}: channel {gap} is missing ({case_id}_{gap:04d}). Add the file.")
        ending = files[0].name[len(stem_of(files[0])) :]
        cases.append(ImageCase(case_id, tuple(files[index] for index in sorted(files)), case_id + ending))
    return cases


def _listed(source: Path) -> list[Path]:
    if source.is_file() and ending_of(source):
        return [source]
    if source.is_file():
        raise InputError(f"{source}: not a known kind of image file. Known endings: {', '.join(ENDINGS)}.")
    if not source.is_dir():
        raise InputError(f"{source}: not found. Give an image or a folder of images.")
    found = [
        path
        for path in sorted(source.iterdir())
        if not path.name.startswith(".") and ending_of(path) and path.is_file()
    ]
    if not found:
        raise InputError(f"{source}: no image in this folder (endings: {', '.join(ENDINGS)}). Check the path.")
    return found


def read_case(case: ImageCase) -> MedicalImage:
    """All channels of a case as one image; each file passes the input gate, and all must lie on one grid."""
    return read_channels(case.paths)
