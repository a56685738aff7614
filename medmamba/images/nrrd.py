"""NRRD (.nrrd, .nhdr): read behind the gate, written with the geometry lines of the image it belongs to.

Source: https://teem.sourceforge.net/nrrd/format.html. Of the text that people wrote into a header (key:=value) only the
names of segments, as 3D Slicer writes them, are read; none is written.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmamba.disk.atomic import Verify, write_atomically
from medmamba.errors import InputError
from medmamba.geometry import Grid
from medmamba.images.checked import GZIP, Decoded, Like, Stored, compressed, little_endian, same_place
from medmamba.images.gate import Packing, ReadOptions, shown
from medmamba.images.text_header import Place, TextHeader, exact, fields_of, numbers, read_volume, whole, written_place

__all__ = ["read", "same_place", "write"]

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
PLACE_FIELDS = ("space", "space dimension", "space directions", "space origin", "space units")
SPATIAL_KINDS = ("domain", "space", "???", "none")


@dataclass(frozen=True)
class NrrdHeader(TextHeader):
    """The header of a NRRD file; ``segments`` are label values and names of a segmentation of 3D Slicer."""

    segments: tuple[tuple[int, str], ...] = ()


def read(path: Path, where: str, options: ReadOptions, *, mask: bool) -> Decoded:
    """The numbers in a NRRD file; a list axis becomes channels (C, i, j, k)."""
    found = read_volume(path, where, options, _parse)
    if mask and len(found.stored) > 1:
        raise InputError(
            f"{where}: {len(found.stored)} layers; a label map has one. Merge its segments into one layer."
        )
    return found


def _parse(lines: list[str], where: str) -> NrrdHeader:
    if not lines or not lines[0].startswith("NRRD"):
        raise InputError(f"{where}: not a NRRD file. Give an image of the kind that its name says.")
    lowered = (re.sub(r"^[^:]*:", lambda name: name[0].lower(), line) for line in lines[1:])
    fields = fields_of(list(lowered), ":", NEEDED, where)
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
    spatial = tuple(size for number, size in enumerate(sizes) if number != channel_axis)
    if len(spatial) not in (2, 3):
        raise InputError(f"{where}: {len(spatial)} axes in space, sizes {tuple(sizes)}. Give a 2D or 3D image.")
    return NrrdHeader(
        sizes=spatial,
        channels=1 if channel_axis is None else sizes[channel_axis],
        channel_first=channel_axis == 0,
        dtype=dtype.newbyteorder(">" if endian == "big" else "<"),
        packing=packing,
        data_file=fields.get("datafile"),
        place=_place(fields, len(spatial), channel_axis, where),
        segments=_segments(lines),
    )


def _segments(lines: list[str]) -> tuple[tuple[int, str], ...]:
    matches = (re.match(r"(Segment\d+_(?:Name|LabelValue)):=(.*)", line) for line in lines)
    found = {match[1]: match[2] for match in matches if match}
    values = {key.removesuffix("_LabelValue"): text for key, text in found.items() if text.strip().isdecimal()}
    return tuple((int(text), found[f"{key}_Name"].strip()) for key, text in values.items() if f"{key}_Name" in found)


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


def _place(fields: dict[str, str], axes: int, channel_axis: int | None, where: str) -> Place:
    space = fields.get("space", "").lower()
    flips = SPACES.get(space)
    if space.endswith("time") or (space and flips is None and not space.startswith(("scanner", "3d-"))):
        raise InputError(f"{where}: its space is {space[:40]!r}. Save it in left-posterior-superior (LPS) or RAS.")
    units = {unit.strip().lower() for unit in re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))} or {"mm"}
    if len(units) != 1 or not units <= MM_PER_UNIT.keys():
        raise InputError(f"{where}: its lengths are in {fields['spaceunits'][:40]}. Save the image in mm.")
    scale = MM_PER_UNIT[units.pop()]
    vectors = [v for v in _vectors(fields.get("spacedirections", "")) if v is not None]
    if not vectors:
        words = [w for number, w in enumerate(fields.get("spacings", "").split()) if number != channel_axis]
        if not words or any(w.lower() == "nan" for w in words):
            return Place()
        spacing = numbers(" ".join(words), axes, "spacings", where)
        return Place(np.diag(spacing), [0.0] * axes, lines=(("spacings", " ".join(words)),))
    if len(vectors) != axes:
        raise InputError(f"{where}: {len(vectors)} space directions for {axes} axes of space. Correct its header.")
    steps = [[x * scale for x in numbers(v, axes, "space directions", where)] for v in vectors]
    origin = fields.get("spaceorigin", "(" + ",".join(["0"] * axes) + ")")
    texts = {**fields, "spacedirections": " ".join(f"({v})" for v in vectors), "spaceorigin": origin}
    lines = tuple((name, texts[name.replace(" ", "")]) for name in PLACE_FIELDS if name.replace(" ", "") in texts)
    return Place(steps, [x * scale for x in numbers(origin.strip("() "), axes, "space origin", where)], flips, lines)


def _vectors(text: str) -> list[str | None]:
    return [None if word.lower() == "none" else word.strip("()") for word in re.findall(r"\([^)]*\)|\w+", text)]


def _lines_of(grid: Grid) -> dict[str, str]:
    """Where an image of another format lies."""
    assert grid.affine is not None
    directions = " ".join(f"({exact(column, ',')})" for column in grid.affine[:3, :3].T)
    origin = f"({exact(grid.affine[:3, 3], ',')})"
    return {"space": "right-anterior-superior", "space directions": directions, "space origin": origin}


def write(path: Path, stored: Stored, like: Like, *, mask: bool, verify: Verify) -> None:
    """Writes (C, i, j, k) into one file, even where the image had a detached header."""
    if path.suffix.lower() != ".nrrd":
        raise InputError(f"{shown(path)}: written as .nrrd only, header and voxels in one file. Change the ending.")
    spatial, place = written_place(like, NrrdHeader, _lines_of)
    sizes, kinds = [*spatial], ["domain"] * len(spatial)
    if len(stored) > 1:
        sizes.append(len(stored))
        kinds.append("list")
        for name, absent in (("space directions", "none"), ("spacings", "nan")):
            if name in place:
                place[name] += f" {absent}"
    before_sizes = [name for name in ("space", "space dimension") if name in place]
    fields = {
        "type": TYPES[stored.dtype.newbyteorder("=").str[1:]][0],
        "dimension": str(len(sizes)),
        **{name: place.pop(name) for name in before_sizes},
        "sizes": " ".join(map(str, sizes)),
        **place,
        "kinds": " ".join(kinds),
        "endian": "little",
        "encoding": "gzip",
    }
    channels = (channel.tobytes(order="F") for channel in little_endian(stored))
    with write_atomically(path, verify=verify) as file:
        file.write(("NRRD0004\n" + "".join(f"{name}: {text}\n" for name, text in fields.items()) + "\n").encode())
        for piece in compressed(channels, level=6, format_bits=GZIP):
            file.write(piece)
