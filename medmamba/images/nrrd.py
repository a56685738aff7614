"""NRRD (.nrrd, .nhdr): read behind the gate, written with the geometry lines of the image it belongs to.

Source: https://teem.sourceforge.net/nrrd/format.html. Read here rather than by a library, so that length and
checksum are looked at; text that people wrote into a header (key:=value) is never kept.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medmamba.disk.atomic import Verify, write_atomically
from medmamba.errors import InputError
from medmamba.geometry import Grid, Shape
from medmamba.images.checked import Decoded, Like, grid_of
from medmamba.images.gate import Container, Limits, check_size, open_regular, read_block, shown
from medmamba.images.nifti_header import Prefer
from medmamba.images.text_header import data_file, grid_from, header_lines, numbers, whole
from medmamba.images.voxels import Stored

TYPES = {
    "i1": ("int8", "signed char", "int8_t"),
    "u1": ("uint8", "unsigned char", "uchar", "uint8_t"),
    "i2": ("int16", "short", "short int", "signed short", "signed short int", "int16_t"),
    "u2": ("uint16", "unsigned short", "ushort", "unsigned short int", "uint16_t"),
    "i4": ("int32", "int", "signed int", "int32_t"),
    "u4": ("uint32", "unsigned int", "uint", "uint32_t"),
    "i8": ("int64", "longlong", "long long", "long long int", "signed long long", "int64_t"),
    "u8": ("uint64", "ulonglong", "unsigned long long", "unsigned long long int", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
TYPE_OF = {name: kind for kind, names in TYPES.items() for name in names}
# Direction of the file's world axes, as signs that turn them to RAS+.
SPACES = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
MM_PER_UNIT = {"mm": 1.0, "": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001}
SPATIAL_KINDS = ("domain", "space", "???", "none")


@dataclass(frozen=True)
class NrrdHeader:
    """Size, type and place of the voxels; ``geometry`` holds the lines that a mask gets, word for word."""

    shape: Shape
    flat: bool
    channels: int
    channel_first: bool
    dtype: np.dtype[Any]
    packing: Literal["raw", "gzip"]
    data_file: str | None
    geometry: tuple[tuple[str, str], ...]


def read(path: Path, where: str, limits: Limits, prefer: Prefer | None, *, mask: bool) -> Decoded:
    """The numbers in a NRRD file; a list axis becomes channels (C, i, j, k)."""
    header, grid, known, stored, warnings = _read(path, where, limits)
    if mask and header.channels > 1:
        raise InputError(f"{where}: {header.channels} layers; a label map has one. Merge its segments into one layer.")
    return Decoded(stored, grid, header, warnings, known)


def same_place(found: Decoded, like: Like) -> bool:
    """Whether the grid came back, to the last bit."""
    return found.grid == grid_of(like)


def _read(path: Path, where: str, limits: Limits) -> tuple[NrrdHeader, Grid, bool, Stored, list[str]]:
    file, size = open_regular(path, where)
    with file:
        if file.read(4) != b"NRRD":
            raise InputError(f"{where}: not a NRRD file. Give an image of the kind that its name says.")
        file.seek(0)
        fields = _fields(header_lines(file, where)[1:], where)
        header, grid, known = _understand(fields, where, limits)
        expected = int(np.prod([*header.shape, header.channels], dtype=object)) * header.dtype.itemsize
        if header.data_file is None:
            container = read_block(file, size, expected, where, header.packing)
        else:
            container = _detached(data_file(path, header.data_file, where), expected, where, header)
    order = (header.channels, *header.shape) if header.channel_first else (*header.shape, header.channels)
    stored = container.data.view(header.dtype).reshape(order, order="F")
    return header, grid, known, stored if header.channel_first else np.moveaxis(stored, -1, 0), container.warnings


def _detached(path: Path, expected: int, where: str, header: NrrdHeader) -> Container:
    file, size = open_regular(path, f"{where}: its voxel file {shown(path.name)}")
    with file:
        return read_block(file, size, expected, where, header.packing)


def _fields(lines: list[str], where: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith("#") or ":=" in line:
            continue
        name, colon, value = line.partition(":")
        name = re.sub(r"\s+", "", name.lower())
        if not colon:
            raise InputError(f"{where}: a line of its header is not understood: {line[:60]!r}. The file is damaged.")
        if name in fields:
            raise InputError(f"{where}: the field {name!r} of its header occurs twice. Correct it.")
        fields[name] = value.strip()
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise InputError(f"{where}: its header has no field {name!r}. The file is damaged; export it again.")
    return fields


def _understand(fields: dict[str, str], where: str, limits: Limits) -> tuple[NrrdHeader, Grid, bool]:
    kind = TYPE_OF.get(fields["type"].lower())
    if kind is None:
        raise InputError(f"{where}: voxels of type {fields['type'][:30]!r}. Convert it to one real number per voxel.")
    packing = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(fields["encoding"].lower())
    if packing is None:
        raise InputError(f"{where}: its encoding is {fields['encoding'][:30]!r}; raw and gzip are read. Save it again.")
    for name in ("byteskip", "lineskip"):
        if fields.get(name, "0") != "0":
            raise InputError(f"{where}: its header skips over data ({name}). Save the image again without it.")
    if np.dtype(kind).itemsize > 1 and fields.get("endian", "").lower() not in ("little", "big"):
        raise InputError(f"{where}: its header does not say the byte order (endian). The file is damaged.")
    sizes = whole(fields["sizes"], "sizes", where)
    if len(sizes) != whole(fields["dimension"], "dimension", where)[0]:
        raise InputError(
            f"{where}: dimension {fields['dimension']} and sizes {fields['sizes']!r} disagree. Correct it."
        )
    axis = _channel_axis(fields, sizes, where)
    spatial = [size for number, size in enumerate(sizes) if number != axis]
    if len(spatial) not in (2, 3):
        raise InputError(f"{where}: {len(spatial)} axes in space, sizes {tuple(sizes)}. Give a 2D or 3D image.")
    channels = sizes[axis] if axis is not None else 1
    check_size((*spatial, channels), where, limits)
    i, j, k = (*spatial, 1)[:3]
    grid, known, geometry = _place(fields, (i, j, k), len(spatial), axis, where, limits)
    order = "<" if fields.get("endian", "little").lower() == "little" else ">"
    header = NrrdHeader(
        (i, j, k),
        len(spatial) == 2,
        channels,
        axis == 0,
        np.dtype(kind).newbyteorder(order),  # type: ignore[arg-type]
        packing,  # type: ignore[arg-type]
        fields.get("datafile"),
        geometry,
    )
    return header, grid, known


def _channel_axis(fields: dict[str, str], sizes: list[int], where: str) -> int | None:
    """The axis that is not one of space: its direction is "none", or its kind is that of a list or a vector."""
    directions = _vectors(fields.get("spacedirections", ""))
    kinds = fields.get("kinds", "").lower().split()
    if directions and len(directions) == len(sizes):
        axes = [number for number, vector in enumerate(directions) if vector is None]
    elif len(kinds) == len(sizes):
        axes = [number for number, kind in enumerate(kinds) if kind not in SPATIAL_KINDS]
    else:
        axes = [len(sizes) - 1] if len(sizes) == 4 else []
    if not axes:
        return None
    if len(axes) > 1 or axes[0] not in (0, len(sizes) - 1):
        raise InputError(
            f"{where}: axes that are not of space, sizes {tuple(sizes)}. Give a 3D image or 3D with channels."
        )
    return axes[0]


def _place(
    fields: dict[str, str], shape: Shape, axes: int, channel_axis: int | None, where: str, limits: Limits
) -> tuple[Grid, bool, tuple[tuple[str, str], ...]]:
    """The grid, whether its orientation is known, and the header lines that say so."""
    space = fields.get("space", "").lower()
    flips = SPACES.get(space)
    if space.endswith("time") or (space and flips is None and not space.startswith(("scanner", "3d-"))):
        raise InputError(f"{where}: its space is {space[:40]!r}. Save it in left-posterior-superior (LPS) or RAS.")
    units = {unit.strip().lower() for unit in re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))} or {"mm"}
    if len(units) != 1 or not units <= MM_PER_UNIT.keys():
        raise InputError(f"{where}: its lengths are in {fields['spaceunits'][:40]}. Save the image in mm.")
    scale = MM_PER_UNIT[units.pop()]
    vectors = [v for v in _vectors(fields.get("spacedirections", "")) if v is not None]
    geometry = [(key, fields[name]) for key, name in (("space", "space"), ("space dimension", "spacedimension"))
                if name in fields]  # fmt: skip
    if vectors:
        if len(vectors) != axes:
            raise InputError(f"{where}: {len(vectors)} space directions for {axes} axes of space. Correct its header.")
        columns = [[x * scale for x in numbers(v, axes, "space directions", where)] for v in vectors]
        origin_text = fields.get("spaceorigin", "(" + ",".join(["0"] * axes) + ")")
        origin = [x * scale for x in numbers(origin_text.strip("() "), axes, "space origin", where)]
        geometry += [("space directions", " ".join(f"({v})" for v in vectors)), ("space origin", origin_text)]
        if "spaceunits" in fields:
            geometry.append(("space units", fields["spaceunits"]))
        grid = grid_from(shape, columns, origin, flips or (1, 1, 1), where, limits)
        return grid, flips is not None and axes == 3, tuple(geometry)
    if "spacings" not in fields:
        return Grid(shape), False, ()
    words = [w for number, w in enumerate(fields["spacings"].split()) if number != channel_axis]
    if any(w.lower() == "nan" for w in words):
        return Grid(shape), False, ()
    spacing = numbers(" ".join(words), axes, "spacings", where)
    columns = [[spacing[a] if a == b else 0.0 for b in range(axes)] for a in range(axes)]
    return grid_from(shape, columns, [0.0] * axes, (1, 1, 1), where, limits), False, (("spacings", " ".join(words)),)


def _vectors(text: str) -> list[str | None]:
    return [None if word.lower() == "none" else word.strip("()") for word in re.findall(r"\([^)]*\)|\w+", text)]


def _header_of(like: Like) -> NrrdHeader:
    """Geometry lines of the image itself, or fresh ones for an image of another kind."""
    if not isinstance(like, Grid) and isinstance(like.header, NrrdHeader):
        return like.header
    grid = grid_of(like)
    geometry: tuple[tuple[str, str], ...] = ()
    if grid.affine is not None:
        columns = " ".join(_vector(grid.affine[:3, axis]) for axis in range(3))
        geometry = (
            ("space", "right-anterior-superior"),
            ("space directions", columns),
            ("space origin", _vector(grid.affine[:3, 3])),
        )
    return NrrdHeader(grid.shape, False, 1, False, np.dtype("u1"), "gzip", None, geometry)


def _vector(values: npt.NDArray[np.float64]) -> str:
    return "(" + ",".join(repr(float(v)) for v in values) + ")"  # repr: reads back as the same number


def write(path: Path, stored: Stored, like: Like, *, mask: bool, verify: Verify) -> None:
    """Writes (C, i, j, k) into one file, whatever the image had."""
    header = _header_of(like)
    if path.suffix.lower() != ".nrrd":
        raise InputError(f"{shown(path)}: written as .nrrd only, header and voxels in one file. Change the ending.")
    several = len(stored) > 1
    sizes = [*(header.shape[:2] if header.flat else header.shape), *([len(stored)] if several else [])]
    kinds = ["domain"] * (2 if header.flat else 3) + (["list"] if several else [])
    geometry = dict(header.geometry)
    if several and "space directions" in geometry:
        geometry["space directions"] += " none"
    if several and "spacings" in geometry:
        geometry["spacings"] += " nan"
    little = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
    fields = {
        "type": TYPES[stored.dtype.newbyteorder("=").str[1:]][0],
        "dimension": str(len(sizes)),
        **{name: geometry[name] for name in ("space", "space dimension") if name in geometry},
        "sizes": " ".join(map(str, sizes)),
        **{name: text for name, text in geometry.items() if name not in ("space", "space dimension")},
        "kinds": " ".join(kinds),
        "endian": "little",
        "encoding": "gzip",
    }
    coder = zlib.compressobj(6, zlib.DEFLATED, 31)
    with write_atomically(path, verify=verify) as file:
        file.write(("NRRD0004\n" + "".join(f"{name}: {text}\n" for name, text in fields.items()) + "\n").encode())
        for channel in little:
            file.write(coder.compress(channel.tobytes(order="F")))
        file.write(coder.flush())
