"""NRRD's and MetaImage's common part: a text header of named fields, then voxels that are plain or packed.

The fields are parsed and the voxels unpacked here and not by SimpleITK, because that reads a damaged file of these two
formats without an error (docs/explanation/own-code.md has the measurements).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError
from medmamba.geometry import Affine, Grid, Shape, affine_problem
from medmamba.images.checked import Decoded, Like, grid_of, header_of
from medmamba.images.gate import Packing, ReadOptions, check_size, open_regular, read_block, shown

LONGEST_HEADER = 1 << 20
LONGEST_LINE = 1 << 16


@dataclass(frozen=True)
class Place:
    """Where voxels lie in the file's own world.

    Args:
        steps: for each axis in space the step to the next voxel in mm; None where the file has no millimetres.
        origin: of the first voxel, in mm.
        flips: signs from the file's world axes to RAS+; None if the file does not state the orientation.
        lines: (field, text) of the header lines with the geometry, copied to masks.
    """

    steps: npt.ArrayLike | None = None
    origin: npt.ArrayLike = (0.0, 0.0, 0.0)
    flips: Sequence[int] | None = None
    lines: tuple[tuple[str, str], ...] = ()

    def grid(self, shape: Shape, where: str, any_spacing: bool) -> Grid:
        """The grid in RAS+; a flat image's third axis is square to the other two, 1 mm thick."""
        if self.steps is None:
            return Grid(shape)
        affine: Affine = np.eye(4)
        steps = np.asarray(self.steps, dtype=np.float64)
        flips = np.array(self.flips or (1, 1, 1))[: len(steps), None]
        affine[: len(steps), : len(steps)] = steps.T * flips
        affine[: len(steps), 3:] = np.asarray(self.origin)[:, None] * flips
        if len(steps) == 2:
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] = normal / max(float(np.linalg.norm(normal)), 1e-300)
        affine = affine + 0.0  # no negative zeros
        if problem := affine_problem(affine, any_spacing=any_spacing):
            raise InputError(f"{where}: {problem}. Export the image again, or correct its header.")
        return Grid(shape, affine)


@dataclass(frozen=True)
class TextHeader:
    """What a text header says about its voxels.

    Args:
        sizes: voxels along each axis in space, two or three.
        channel_first: whether the channels of a voxel are neighbours in the file.
        data_file: name of the file that holds the voxels; None where they follow the header.
    """

    sizes: tuple[int, ...]
    channels: int
    channel_first: bool
    dtype: np.dtype[Any]
    packing: Packing
    data_file: str | None
    place: Place


def read_volume(path: Path, where: str, options: ReadOptions, parse: Callable[[list[str], str], TextHeader]) -> Decoded:
    """The numbers (C, i, j, k) of a file with a text header; ``parse(lines, where)`` checks the header's lines."""
    file, size = open_regular(path, where)
    with file:
        header = parse(header_lines(file, where), where)
        check_size((*header.sizes, header.channels), where, options.max_voxels)
        i, j, k = (*header.sizes, 1)[:3]
        grid = header.place.grid((i, j, k), where, options.any_spacing)
        expected = prod(header.sizes) * header.channels * header.dtype.itemsize
        if header.data_file is None:
            container = read_block(file, size, expected, where, header.packing)
        else:
            beside = data_file(path, header.data_file, where)
            voxels, voxel_size = open_regular(beside, f"{where}: its voxel file {shown(beside.name)}")
            with voxels:
                container = read_block(voxels, voxel_size, expected, where, header.packing)
    order = (header.channels, *grid.shape) if header.channel_first else (*grid.shape, header.channels)
    stored = container.data.view(header.dtype).reshape(order, order="F")
    if not header.channel_first:
        stored = np.moveaxis(stored, -1, 0)
    known = header.place.flips is not None and len(header.sizes) == 3
    return Decoded(stored, grid, header, tuple(container.warnings), known)


def written_place(
    like: Like, kind: type[TextHeader], lines_of: Callable[[Grid], dict[str, str]]
) -> tuple[tuple[int, ...], dict[str, str]]:
    """The sizes in space of a file on the grid of ``like``, and the header lines that place it.

    They are those of an image of the same format; ``lines_of`` gives them for any other.
    """
    header: TextHeader | None = header_of(like, kind)
    if header is not None:
        return header.sizes, dict(header.place.lines)
    grid = grid_of(like)
    return grid.shape, {} if grid.affine is None else lines_of(grid)


def exact(values: npt.NDArray[np.float64], separator: str) -> str:
    """Numbers as text that reads back as the same numbers, without negative zeros."""
    return separator.join(repr(float(value) + 0.0) for value in values)


def header_lines(file: BinaryIO, where: str) -> list[str]:
    """Lines of a text header up to a blank one or one that starts with ElementDataFile; the file is left behind it."""
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


def fields_of(lines: Iterable[str], separator: str, needed: Sequence[str], where: str) -> dict[str, str]:
    """The text of each field by its name, without blanks in the name; comments and NRRD's key:=value are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith("#") or ":=" in line or line.startswith("Comment"):
            continue
        name, found, value = line.partition(separator)
        name = "".join(name.split())
        if not found:
            raise InputError(f"{where}: a line of its header is not understood: {line[:60]!r}. The file is damaged.")
        if name in fields:
            raise InputError(f"{where}: the field {name!r} of its header occurs twice. Correct it.")
        fields[name] = value.strip()
    for name in needed:
        if name not in fields:
            raise InputError(f"{where}: its header has no field {name!r}. The file is damaged; export it again.")
    return fields


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


def data_file(header: Path, name: str, where: str) -> Path:
    """The voxel file that a detached header names, in its folder; InputError for another place or several files."""
    name = name.removeprefix("./").removeprefix(".\\")
    if "%" in name or name.upper().startswith("LIST"):
        raise InputError(f"{where}: its voxels are in several files. Save the image in one file.")
    if not name or name in (".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise InputError(f"{where}: it names its voxels {name[:60]!r}. They must be in a file beside it.")
    return header.with_name(name)


def detached_files(path: Path) -> list[Path]:
    """A text header and, where its voxels do not follow in the same file, the file beside it that holds them."""
    file, _ = open_regular(path)
    with file:
        for line in header_lines(file, shown(path)):
            name, _, value = line.replace("=", ":", 1).partition(":")
            if name.replace(" ", "").lower() in ("elementdatafile", "datafile") and value.strip().upper() != "LOCAL":
                return [path, data_file(path, value.strip(), shown(path))]
    return [path]
