"""MetaImage (.mha, .mhd): read behind the gate, written with the geometry lines of the image it belongs to.

Source: the MetaIO documentation of ITK (https://itk.org/Wiki/ITK/MetaIO/Documentation). World axes are LPS.
"""

from pathlib import Path

import numpy as np

from medmamba.disk.atomic import Verify, write_bytes, write_pair
from medmamba.errors import InputError
from medmamba.geometry import Grid
from medmamba.images.checked import ZLIB, Decoded, Like, Stored, compressed, header_and_zraw, little_endian, same_place
from medmamba.images.gate import ReadOptions
from medmamba.images.text_header import Place, TextHeader, exact, fields_of, numbers, read_volume, whole, written_place

__all__ = ["read", "same_place", "write"]

BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8}
TYPES = {f"MET_{sign}{name}": f"{kind}{n}" for name, n in BYTES.items() for sign, kind in (("", "i"), ("U", "u"))}
TYPES |= {"MET_FLOAT": "f4", "MET_DOUBLE": "f8"}
NAME_OF = {kind: name for name, kind in reversed(TYPES.items())}
NEEDED = ("NDims", "DimSize", "ElementType", "ElementDataFile")
SPACING, CENTER = "ElementSpacing", "CenterOfRotation"
DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")  # the first of the names that a file uses counts
ORIGINS = ("Offset", "Origin", "Position")
PLACE_FIELDS = (*DIRECTIONS, *ORIGINS, CENTER, "AnatomicalOrientation", SPACING)
UNSUPPORTED = {"HeaderSize": 0, "ElementToIntensityFunctionSlope": 1, "ElementToIntensityFunctionOffset": 0}
LPS = (-1, -1, 1)


class MetaHeader(TextHeader):
    """The header of a MetaImage."""


def read(path: Path, where: str, options: ReadOptions, *, mask: bool) -> Decoded:
    """The numbers in a MetaImage file; several per voxel become channels (C, i, j, k)."""
    return read_volume(path, where, options, _parse)


def _parse(lines: list[str], where: str) -> MetaHeader:
    if not lines or not lines[0].replace(" ", "").startswith(("ObjectType=", "NDims=", "Comment=")):
        raise InputError(f"{where}: not a MetaImage file. Give an image of the kind that its name says.")
    fields = fields_of(lines, "=", NEEDED, where)
    kind = TYPES.get(fields["ElementType"])
    if kind is None or not _yes(fields.get("BinaryData", "True")):
        raise InputError(
            f"{where}: voxels of type {fields['ElementType'][:30]!r}, or as text. Save it as binary numbers."
        )
    for name, plain in UNSUPPORTED.items():
        if name in fields and numbers(fields[name], 1, name, where)[0] != plain:
            raise InputError(
                f"{where}: the field {name!r} of its header is {fields[name][:30]}. Save it again without it."
            )
    sizes = whole(fields["DimSize"], "DimSize", where)
    axes = whole(fields["NDims"], "NDims", where)[0]
    channels = whole(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels", where)[0]
    if len(sizes) != axes or axes not in (2, 3):
        raise InputError(f"{where}: {axes} dimensions, sizes {tuple(sizes)}. Give a 2D or 3D image.")
    big = _yes(fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")))
    return MetaHeader(
        sizes=tuple(sizes),
        channels=channels,
        channel_first=True,
        dtype=np.dtype(kind).newbyteorder(">" if big else "<"),
        packing="zlib" if _yes(fields.get("CompressedData", "False")) else "raw",
        data_file=None if fields["ElementDataFile"].upper() == "LOCAL" else fields["ElementDataFile"],
        place=_place(fields, axes, where),
    )


def _place(fields: dict[str, str], axes: int, where: str) -> Place:
    lines = tuple((name, fields[name]) for name in PLACE_FIELDS if name in fields)
    if SPACING not in fields:
        return Place(lines=lines)

    def values(names: tuple[str, ...], default: np.ndarray) -> np.ndarray:
        name = next((name for name in names if name in fields), None)
        return default if name is None else np.array(numbers(fields[name], default.size, name, where))

    spacing = values((SPACING,), np.ones(axes))
    directions = values(DIRECTIONS, np.eye(axes).ravel()).reshape(axes, axes)  # one row per axis of the image
    origin = values(ORIGINS, np.zeros(axes))
    return Place(directions * spacing[:, None], origin, LPS if axes == 3 else None, lines)


def _yes(text: str) -> bool:
    return text.strip().lower() in ("true", "t", "1", "yes")


def _lines_of(grid: Grid) -> dict[str, str]:
    """Where an image of another format lies."""
    assert grid.affine is not None
    spacing = np.array(grid.spacing_mm)
    directions = (grid.affine[:3, :3] / spacing) * np.array(LPS)[:, None]
    return {
        DIRECTIONS[0]: exact(directions.T.ravel(), " "),
        ORIGINS[0]: exact(grid.affine[:3, 3] * LPS, " "),
        CENTER: "0 0 0",
        SPACING: exact(spacing, " "),
    }


def write(path: Path, stored: Stored, like: Like, *, mask: bool, verify: Verify) -> None:
    """Writes (C, i, j, k) as .mha, or as .mhd with its packed voxels beside it."""
    sizes, place = written_place(like, MetaHeader, _lines_of)
    slices = (plane.tobytes(order="F") for plane in np.moveaxis(little_endian(stored), -1, 0))
    packed = b"".join(compressed(slices, level=6, format_bits=ZLIB))
    files = header_and_zraw(path) if path.suffix.lower() == ".mhd" else [path]
    fields = {
        "ObjectType": "Image",
        "NDims": str(len(sizes)),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(packed)),
        **place,
        "DimSize": " ".join(map(str, sizes)),
        **({"ElementNumberOfChannels": str(len(stored))} if len(stored) > 1 else {}),
        "ElementType": NAME_OF[stored.dtype.newbyteorder("=").str[1:]],
        "ElementDataFile": files[1].name if len(files) > 1 else "LOCAL",
    }
    text = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()
    if len(files) > 1:
        write_pair(path, text, files[1], lambda file: file.write(packed), verify=verify)
    else:
        write_bytes(path, text + packed, verify=verify)
