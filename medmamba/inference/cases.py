"""Which cases a file, a folder or a list of files holds, and what their masks are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medmamba.errors import InputError
from medmamba.geometry import grid_difference
from medmamba.images import MedicalImage, read_image

ENDINGS = (".nii.gz", ".nii")
"""Endings of images that are read; the mask of an image has the same."""
_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class ImageCase:
    """One case: its id, its files (one, or one per channel in order) and the file name of its mask."""

    case_id: str
    paths: tuple[Path, ...]
    output_name: str


def find_cases(source: Path | Sequence[Path]) -> list[ImageCase]:
    """The cases of a file, a folder (hidden files skipped) or a list of files, sorted by id.

    ``X_0000.nii.gz, X_0001.nii.gz, ...`` are the channels of case X (nnU-Net's naming), ``X.nii.gz`` is case X.
    Raises InputError when there is none, when a channel is missing, or when two files give one case.
    """
    paths = _listed(source) if isinstance(source, Path) else list(source)
    channels: dict[str, dict[int, Path]] = {}
    for path in paths:
        stem, _ = split_ending(path)
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
        _, ending = split_ending(files[0])
        cases.append(ImageCase(case_id, tuple(files[index] for index in sorted(files)), case_id + ending))
    return cases


def split_ending(path: Path) -> tuple[str, str]:
    """File name without and with only its image ending; ``.NII.GZ`` counts too."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)], path.name[-len(ending) :]
    raise InputError(f"{path}: not an image that can be read. Endings: {', '.join(ENDINGS)}.")


def _listed(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: not found. Give an image or a folder of images.")
    found = [
        path
        for path in sorted(source.iterdir())
        if not path.name.startswith(".") and path.name.lower().endswith(ENDINGS) and path.is_file()
    ]
    if not found:
        raise InputError(f"{source}: no image in this folder (endings: {', '.join(ENDINGS)}). Check the path.")
    return found


def read_case(case: ImageCase) -> MedicalImage:
    """All channels of a case as one image; each file passes the input gate, and all must lie on one grid."""
    first, *others = (read_image(path) for path in case.paths)
    for path, other in zip(case.paths[1:], others, strict=True):
        difference = grid_difference(first.grid, other.grid)
        if difference is not None:
            raise InputError(
                f"{case.case_id}: the channels {case.paths[0].name} and {path.name} {difference}. "
                "Resample them to one grid."
            )
    if not others:
        return first
    return replace(first, array=np.concatenate([first.array, *(other.array for other in others)]))
