"""NRRD (.nrrd, .nhdr): read behind the gate, written with the geometry lines of the image it belongs to.

Source: https://teem.sourceforge.net/nrrd/format.html. Text that people wrote into a header (key:=value) is never kept.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medmamba.disk.atomic import Verify, write_atomically
from medmamba.errors import InputError
from medmamba.geometry import Grid, Shape
from medmamba.images.checked import GZIP, Decoded, Like, compressed, grid_of, header_of
from medmamba.images.gate import Packing, ReadOptions, check_size, shown
from medmamba.images.text_header import (
    Geometry,
    Placed,
    TextHeader,
    grid_from,
    header_fields,
    numbers,
    read_text_volume,
    whole,
)
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
PACKINGS: dict[str, Packing] = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}
NEEDED = ("type", "dimension", "sizes", "encoding")
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


class NrrdHeader(TextHeader):
    """The header of a NRRD file."""


def read(path: Path, where: str, options: ReadOptions, *, mask: bool) -> Decoded:
    """The numbers in a NRRD file; a list axis becomes channels (C, i, j, k)."""
    found = read_text_volume(path, where, partial(_understand, where=where, max_voxels=options.max_voxels))
    if mask and len(found.stored) > 1:
        raise InputError(
            f"{where}: {len(found.stored)} layers; a label map has one. Merge its segments into one layer."
        )
    return found


def same_place(found: Decoded, like: Like) -> bool:
    """Whether the grid came back, to the last bit."""
    return found.grid == grid_of(like)


def _understand(lines: list[str], where: str, max_voxels: int) -> Placed:
    if not lines or not lines[0].startswith("NRRD"):
        raise InputError(f"{where}: not a NRRD file. Give an image of the kind that its name says.")
    lowered = (re.sub(r"^[^:]*:", lambda name: name[0].lower(), line) for line in lines[1:])
    fields = header_fields(list(lowered), ":", NEEDED, where)
    kind = TYPE_OF.get(fields["type"].lower())
    if kind is None:
        raise InputError(f"{where}: voxels of type {fields['type'][:30]!r}. Convert it to one real number per voxel.")
    packing = PACKINGS.get(fields["encoding"].lower())
    if packing is None:
        raise InputError(f"{where}: its encoding is {fields['encoding'][:30]!r}; raw and gzip are read. Save it again.")
    for name in ("byteskip", "lineskip"):
        if fields.get(name, "0") != "0":
            raise InputError(f"{where}: its header skips over data ({name}). Save the image again without it.")
    dtype = np.dtype(kind)
    endian = fields.get("endian", "").lower()
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise InputError(f"{where}: its header does not say the byte order (endian). The file is damaged.")
    sizes = whole(fields["sizes"], "sizes", where)
    if len(sizes) != whole(fields["dimension"], "dimension", where)[0]:
        raise InputError(
            f"{where}: dimension {fields['dimension']} and sizes {fields['sizes']!r} disagree. Correct it."
        )
    channel_axis = _channel_axis(fields, sizes, where)
    spatial = [size for number, size in enumerate(sizes) if number != channel_axis]
    if len(spatial) not in (2, 3):
        raise InputError(f"{where}: {len(spatial)} axes in space, sizes {tuple(sizes)}. Give a 2D or 3D image.")
    channels = sizes[channel_axis] if channel_axis is not None else 1
    check_size((*spatial, channels), where, max_voxels)
    i, j, k = (*spatial, 1)[:3]
    grid, known, geometry = _place(fields, (i, j, k), len(spatial), channel_axis, where)
    header = NrrdHeader(
        shape=(i, j, k),
        axes=len(spatial),
        channels=channels,
        channel_first=channel_axis == 0,
        dtype=dtype.newbyteorder(">" if endian == "big" else "<"),
        packing=packing,
        data_file=fields.get("datafile"),
        geometry=geometry,
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
    fields: dict[str, str], shape: Shape, axes: int, channel_axis: int | None, where: str
) -> tuple[Grid, bool, Geometry]:
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
    if vectors:
        if len(vectors) != axes:
            raise InputError(f"{where}: {len(vectors)} space directions for {axes} axes of space. Correct its header.")
        columns = [[x * scale for x in numbers(v, axes, "space directions", where)] for v in vectors]
        origin_text = fields.get("spaceorigin", "(" + ",".join(["0"] * axes) + ")")
        origin = [x * scale for x in numbers(origin_text.strip("() "), axes, "space origin", where)]
        lines = {
            "space": fields.get("space"),
            "space dimension": fields.get("spacedimension"),
            "space directions": " ".join(f"({v})" for v in vectors),
            "space origin": origin_text,
            "space units": fields.get("spaceunits"),
        }
        geometry = tuple((name, text) for name, text in lines.items() if text is not None)
        return grid_from(shape, columns, origin, flips or (1, 1, 1), where), flips is not None and axes == 3, geometry
    words = [w for number, w in enumerate(fields.get("spacings", "").split()) if number != channel_axis]
    if not words or any(w.lower() == "nan" for w in words):
        return Grid(shape), False, ()
    spacing = numbers(" ".join(words), axes, "spacings", where)
    grid = grid_from(shape, np.diag(spacing).tolist(), [0.0] * axes, (1, 1, 1), where)
    return grid, False, (("spacings", " ".join(words)),)


def _vectors(text: str) -> list[str | None]:
    return [None if word.lower() == "none" else word.strip("()") for word in re.findall(r"\([^)]*\)|\w+", text)]


def _geometry_of(grid: Grid) -> Geometry:
    """Geometry lines for an image of another format."""
    if grid.affine is None:
        return ()
    columns = " ".join(_vector(grid.affine[:3, axis]) for axis in range(3))
    return (
        ("space", "right-anterior-superior"),
        ("space directions", columns),
        ("space origin", _vector(grid.affine[:3, 3])),
    )


def _vector(values: npt.NDArray[np.float64]) -> str:
    return "(" + ",".join(repr(float(v)) for v in values) + ")"  # repr: reads back as the same number


def write(path: Path, stored: Stored, like: Like, *, mask: bool, verify: Verify) -> None:
    """Writes (C, i, j, k) into one file, even where the image had a detached header."""
    if path.suffix.lower() != ".nrrd":
        raise InputError(f"{shown(path)}: written as .nrrd only, header and voxels in one file. Change the ending.")
    header: NrrdHeader | None = header_of(like, NrrdHeader)
    grid = grid_of(like)
    axes = header.axes if header else 3
    geometry = dict(header.geometry if header else _geometry_of(grid))
    sizes, kinds = [*grid.shape[:axes]], ["domain"] * axes
    if len(stored) > 1:
        sizes.append(len(stored))
        kinds.append("list")
        for name, absent in (("space directions", "none"), ("spacings", "nan")):
            if name in geometry:
                geometry[name] += f" {absent}"
    before_sizes = [name for name in ("space", "space dimension") if name in geometry]
    fields = {
        "type": TYPES[stored.dtype.newbyteorder("=").str[1:]][0],
        "dimension": str(len(sizes)),
        **{name: geometry.pop(name) for name in before_sizes},
        "sizes": " ".join(map(str, sizes)),
        **geometry,
        "kinds": " ".join(kinds),
        "endian": "little",
        "encoding": "gzip",
    }
    little = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
    with write_atomically(path, verify=verify) as file:
        file.write(("NRRD0004\n" + "".join(f"{name}: {text}\n" for name, text in fields.items()) + "\n").encode())
        for piece in compressed((channel.tobytes(order="F") for channel in little), level=6, format_bits=GZIP):
            file.write(piece)
