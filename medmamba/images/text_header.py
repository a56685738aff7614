"""What NRRD and MetaImage share: a text header, axes in LPS or RAS, voxels plain or packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medmamba.errors import InputError
from medmamba.geometry import Affine, Grid, Shape, affine_problem
from medmamba.images.gate import Limits, open_regular, shown

LONGEST_HEADER = 1 << 20
LONGEST_LINE = 1 << 16


def header_lines(file: BinaryIO, where: str) -> list[str]:
    """Lines of a text header up to a blank one, or one that starts with ElementDataFile; the file stands behind it."""
    lines: list[str] = []
    length = 0
    while True:
        raw = file.readline(LONGEST_LINE)
        length += len(raw)
        if not raw and lines:  # a header whose voxels are elsewhere may end with its file
            return lines
        if not raw or len(raw) == LONGEST_LINE or length > LONGEST_HEADER:
            raise InputError(f"{where}: its text header has no end. The file is damaged; copy it again.")
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            return lines
        lines.append(line)
        if line.replace(" ", "").startswith("ElementDataFile="):
            return lines


def numbers(text: str, count: int, field: str, where: str) -> list[float]:
    """``count`` finite numbers of a header field."""
    try:
        values = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise InputError(f"{where}: the field {field!r} of its header is {text[:60]!r}; {count} numbers are needed.")
    return values


def whole(text: str, field: str, where: str) -> list[int]:
    """Whole numbers of a header field."""
    words = text.split()
    if not words or not all(word.lstrip("-").isdecimal() and len(word) < 20 for word in words):
        raise InputError(f"{where}: the field {field!r} of its header is {text[:60]!r}; whole numbers are needed.")
    return [int(word) for word in words]


def grid_from(
    shape: Shape,
    columns: Sequence[Sequence[float]] | None,
    origin: Sequence[float],
    flips: Sequence[float],
    where: str,
    limits: Limits,
) -> Grid:
    """A grid from steps per voxel (one per axis) in the file's own world, turned to RAS+ by ``flips``.

    Two axes of two numbers each are a flat image: its third axis is square to it, 1 mm thick.
    """
    if columns is None:
        return Grid(shape)
    affine: Affine = np.eye(4)
    size = len(columns)
    for axis, column in enumerate(columns):
        affine[: len(column), axis] = np.asarray(column) * np.asarray(flips)[: len(column)]
    affine[: len(origin), 3] = np.asarray(origin) * np.asarray(flips)[: len(origin)]
    if size == 2:
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / max(float(np.linalg.norm(normal)), 1e-300)
    affine = affine + 0.0  # no negative zeros
    problem = affine_problem(affine, smallest_mm=limits.smallest_spacing_mm, largest_mm=limits.largest_spacing_mm)
    if problem:
        raise InputError(f"{where}: {problem}. Export the image again, or correct its header.")
    return Grid(shape, affine)


def data_file(header: Path, name: str, where: str) -> Path:
    """The voxel file that a detached header names: a plain name in the header's own folder.

    Raises:
        InputError: a path that leads elsewhere, or a pattern for several files.
    """
    if "%" in name or name.upper().startswith("LIST"):
        raise InputError(f"{where}: its voxels are in several files. Save the image in one file.")
    if not name or name in (".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise InputError(f"{where}: it names its voxels {name[:60]!r}. They must be in a file beside it.")
    return header.with_name(name)


def voxel_file(path: Path) -> Path | None:
    """The file beside a text header that holds its voxels; None where they follow the header itself."""
    file, _ = open_regular(path)
    with file:
        for line in header_lines(file, shown(path)):
            name, _, value = line.replace("=", ":", 1).partition(":")
            if name.replace(" ", "").lower() in ("elementdatafile", "datafile"):
                return None if value.strip().upper() == "LOCAL" else data_file(path, value.strip(), shown(path))
    return None
