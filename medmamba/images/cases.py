"""The cases that a file, a folder or a list of files holds, with the file names of their masks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmamba.errors import InputError
from medmamba.images import format_of, list_images, mask_ending, stem_of, written_files

_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class ImageCase:
    """One case: its id, its files (one, or one per channel in order) and the file name of its mask."""

    case_id: str
    paths: tuple[Path, ...]
    output_name: str

    def outputs(self, folder: Path) -> list[Path]:
        """Paths of its mask in ``folder``: one file, or header and voxels."""
        return written_files(folder / self.output_name)


def find_cases(source: str | Path | Sequence[Path]) -> list[ImageCase]:
    """The cases of a file, a DICOM series, a folder of images (hidden files skipped) or a list of them, sorted by id.

    ``X_0000.nii.gz, X_0001.nii.gz, ...`` are the channels of case X (nnU-Net's naming), ``X.nii.gz`` is case X, and a
    folder of DICOM slices is the case of its name. Raises InputError when there is none, when a channel is missing, or
    when two files give one case.
    """
    paths = _listed(Path(source)) if isinstance(source, str | Path) else list(source)
    if not paths:
        raise InputError("The list of images is empty. Give at least one.")
    channels: dict[str, dict[int, Path]] = {}
    for path in paths:
        stem = path.resolve().name if path.is_dir() else stem_of(path)
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
        paths_in_order = tuple(files[index] for index in sorted(files))
        cases.append(ImageCase(case_id, paths_in_order, case_id + mask_ending(files[0])))
    return cases


def part_of(cases: Sequence[ImageCase], part: tuple[int, int]) -> list[ImageCase]:
    """The cases of part i of n (counted from 1): every n-th, so that parts are alike and disjoint."""
    number, count = part
    if not 1 <= number <= count:
        raise InputError(f"--part {number}/{count} does not exist. Use 1/{count} to {count}/{count}.")
    return list(cases[number - 1 :: count])


def _listed(source: Path) -> list[Path]:
    if source.is_file():
        format_of(source)  # raises for other kinds of files
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: not found. Give an image, a folder of images or a DICOM folder.")
    return list_images(source)
