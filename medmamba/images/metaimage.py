"""MetaImage (.mha, .mhd): read behind the gate, written with the geometry lines of the image it belongs to.

Source: the MetaIO documentation of ITK (https://itk.org/Wiki/ITK/MetaIO/Documentation). World axes are LPS.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.disk.atomic import Verify, write_bytes, write_pair
from medmamba.errors import InputError
from medmamba.geometry import Grid, Shape
from medmamba.images.checked import Decoded, Like, grid_of
from medmamba.images.gate import Limits, check_size, open_regular, read_block, shown
from medmamba.images.nifti_header import Prefer
from medmamba.images.text_header import data_file, grid_from, header_lines, numbers, whole
from medmamba.images.voxels import Stored

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
NAME_OF = {kind: name for name, kind in reversed(TYPES.items())}
GEOMETRY = (
    "TransformMatrix",
    "Rotation",
    "Orientation",
    "Offset",
    "Origin",
    "Position",
    "CenterOfRotation",
    "AnatomicalOrientation",
    "ElementSpacing",
)
LPS = (-1, -1, 1)


@dataclass(frozen=True)
class MetaHeader:
    """Size, type and place of the voxels; ``geometry`` holds the lines that a mask gets, word for word."""

    shape: Shape
    axes: int
    channels: int
    dtype: np.dtype[Any]
    packed: bool
    data_file: str
    geometry: tuple[tuple[str, str], ...]


def read(path: Path, where: str, limits: Limits, prefer: Prefer | None, *, mask: bool) -> Decoded:
    """The numbers in a MetaImage file; several per voxel become channels (C, i, j, k)."""
    header, grid, stored, warnings = _read(path, where, limits)
    return Decoded(stored, grid, header, warnings, grid.affine is not None and header.axes == 3)


def same_place(found: Decoded, like: Like) -> bool:
    """Whether the grid came back, to the last bit."""
    return found.grid == grid_of(like)


def _read(path: Path, where: str, limits: Limits) -> tuple[MetaHeader, Grid, Stored, list[str]]:
    file, size = open_regular(path, where)
    with file:
        start = file.read(64).lstrip()
        if not start.replace(b" ", b"").startswith((b"ObjectType=", b"NDims=", b"Comment=")):
            raise InputError(f"{where}: not a MetaImage file. Give an image of the kind that its name says.")
        file.seek(0)
        header, grid = _understand(_fields(header_lines(file, where), where), where, limits)
        expected = int(np.prod([*header.shape, header.channels], dtype=object)) * header.dtype.itemsize
        packing: Any = "zlib" if header.packed else "raw"
        if header.data_file.upper() == "LOCAL":
            container = read_block(file, size, expected, where, packing)
        else:
            beside = data_file(path, header.data_file, where)
            voxels, voxel_size = open_regular(beside, f"{where}: its voxel file {shown(beside.name)}")
            with voxels:
                container = read_block(voxels, voxel_size, expected, where, packing)
    stored = container.data.view(header.dtype).reshape((header.channels, *header.shape), order="F")
    return header, grid, stored, container.warnings


def _fields(lines: list[str], where: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals:
            raise InputError(f"{where}: a line of its header is not understood: {line[:60]!r}. The file is damaged.")
        if name.strip() in fields and name.strip() != "Comment":
            raise InputError(f"{where}: the field {name.strip()!r} of its header occurs twice. Correct it.")
        fields[name.strip()] = value.strip()
    for name in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if name not in fields:
            raise InputError(f"{where}: its header has no field {name!r}. The file is damaged; export it again.")
    return fields


def _understand(fields: dict[str, str], where: str, limits: Limits) -> tuple[MetaHeader, Grid]:
    kind = TYPES.get(fields["ElementType"])
    if kind is None or not _yes(fields.get("BinaryData", "True")):
        raise InputError(
            f"{where}: voxels of type {fields['ElementType'][:30]!r}, or as text. Save it as binary numbers."
        )
    for name, plain in (("HeaderSize", "0"), ("ElementToIntensityFunctionSlope", "1"),
                        ("ElementToIntensityFunctionOffset", "0")):  # fmt: skip
        if float(numbers(fields.get(name, plain), 1, name, where)[0]) != float(plain):
            raise InputError(
                f"{where}: the field {name!r} of its header is {fields[name][:30]}. Save it again without it."
            )
    sizes = whole(fields["DimSize"], "DimSize", where)
    axes = whole(fields["NDims"], "NDims", where)[0]
    channels = whole(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels", where)[0]
    if len(sizes) != axes or axes not in (2, 3):
        raise InputError(f"{where}: {axes} dimensions, sizes {tuple(sizes)}. Give a 2D or 3D image.")
    check_size((*sizes, channels), where, limits)
    i, j, k = (*sizes, 1)[:3]
    msb = _yes(fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")))
    header = MetaHeader(
        (i, j, k),
        axes,
        channels,
        np.dtype(kind).newbyteorder(">" if msb else "<"),
        _yes(fields.get("CompressedData", "False")),
        fields["ElementDataFile"],
        tuple((name, fields[name]) for name in GEOMETRY if name in fields),
    )
    return header, _place(fields, header, where, limits)


def _place(fields: dict[str, str], header: MetaHeader, where: str, limits: Limits) -> Grid:
    axes = header.axes
    if "ElementSpacing" not in fields:
        return Grid(header.shape)
    spacing = numbers(fields["ElementSpacing"], axes, "ElementSpacing", where)
    identity = " ".join("1" if a == b else "0" for a in range(axes) for b in range(axes))
    turn_field = next((name for name in ("TransformMatrix", "Rotation", "Orientation") if name in fields), "")
    turn = numbers(fields.get(turn_field, identity), axes * axes, turn_field, where)
    origin_field = next((name for name in ("Offset", "Origin", "Position") if name in fields), "")
    origin = numbers(fields.get(origin_field, " ".join(["0"] * axes)), axes, origin_field, where)
    columns = [[turn[axis * axes + world] * spacing[axis] for world in range(axes)] for axis in range(axes)]
    return grid_from(header.shape, columns, origin, LPS if axes == 3 else (1, 1, 1), where, limits)


def _yes(text: str) -> bool:
    return text.strip().lower() in ("true", "t", "1", "yes")


def _header_of(like: Like) -> MetaHeader:
    """Geometry lines of the image itself, or fresh ones for an image of another kind."""
    if not isinstance(like, Grid) and isinstance(like.header, MetaHeader):
        return like.header
    grid = grid_of(like)
    geometry: tuple[tuple[str, str], ...] = ()
    if grid.affine is not None and grid.spacing_mm is not None:
        direction = (grid.affine[:3, :3] / np.array(grid.spacing_mm)) * np.array(LPS)[:, None]
        origin = grid.affine[:3, 3] * LPS
        geometry = (
            ("TransformMatrix", _row(direction.T.ravel())),
            ("Offset", _row(origin)),
            ("CenterOfRotation", "0 0 0"),
            ("ElementSpacing", _row(np.array(grid.spacing_mm))),
        )
    return MetaHeader(grid.shape, 3, 1, np.dtype("u1"), True, "LOCAL", geometry)


def _row(values: npt.NDArray[np.float64]) -> str:
    return " ".join(repr(float(v) + 0.0) for v in values)


def write(path: Path, stored: Stored, like: Like, *, mask: bool, verify: Verify) -> None:
    """Writes (C, i, j, k) as .mha, or as .mhd with its packed voxels beside it."""
    header = _header_of(like)
    coder = zlib.compressobj(6)
    little = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
    interleaved = little.reshape(len(stored), *header.shape)
    packed = b"".join([coder.compress(interleaved[..., k].tobytes(order="F")) for k in range(header.shape[2])])
    packed += coder.flush()
    apart = path.suffix.lower() == ".mhd"
    beside = path.with_suffix(".zraw")
    fields = {
        "ObjectType": "Image",
        "NDims": str(header.axes),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(packed)),
        **dict(header.geometry),
        "DimSize": " ".join(map(str, header.shape[: header.axes])),
        **({"ElementNumberOfChannels": str(len(stored))} if len(stored) > 1 else {}),
        "ElementType": NAME_OF[stored.dtype.newbyteorder("=").str[1:]],
        "ElementDataFile": beside.name if apart else "LOCAL",
    }
    text = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()
    if apart:
        write_pair(path, text, beside, lambda file: file.write(packed), verify=verify)
    else:
        write_bytes(path, text + packed, verify=verify)
