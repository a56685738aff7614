"""What every image reader returns and every writer must give back: decoded voxels, checked and compared.

A module of a format (see formats.py) has ``read(path, where, options, mask=...)``, which returns a :class:`Decoded`;
``write(path, stored, like, mask=..., verify=...)``, which writes files whole or not at all; and ``same_place(found,
like)``, which says whether what came back from the disk lies where it should.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError, ResourceError
from medmamba.geometry import Grid, Shape
from medmamba.images.gate import NonFinite, check_memory, shown
from medmamba.images.image import LabelMap, MedicalImage, smallest_type
from medmamba.images.voxels import Stored, intensities, whole_numbers

Like = MedicalImage | LabelMap | Grid
"""Whose grid a file is written on."""

GZIP, ZLIB = 31, 15
"""Window bits of zlib for a gzip stream (without name and time) and for a zlib stream."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """Numbers (C, i, j, k) as they are stored, where they lie, and warnings, one sentence each.

    ``slope`` and ``inter`` make values of them; ``header`` is what a mask on this grid needs.
    """

    stored: Stored
    grid: Grid
    header: Any = None
    warnings: tuple[str, ...] = ()
    orientation_known: bool = True
    slope: float = 1.0
    inter: float = 0.0


def grid_of(like: Like) -> Grid:
    """The grid itself, or that of an image."""
    return like if isinstance(like, Grid) else like.grid


def header_of(like: Like, kind: type[Any]) -> Any:
    """The header of ``like`` if it is of the class ``kind``; None for a grid and for images of other formats."""
    header = None if isinstance(like, Grid) else like.header
    return header if isinstance(header, kind) else None


def checked_image(found: Decoded, path: Path | str, where: str, nonfinite: NonFinite = "error") -> MedicalImage:
    """Decoded numbers as a MedicalImage: scaled and finite, with a warning for constant channels."""
    check_memory(found.stored.size * 4, where)
    array, constant, replaced = intensities(found.stored, found.slope, found.inter, where, nonfinite)
    warnings = list(found.warnings)
    if replaced:
        warnings.append(f"{where}: {replaced} voxels were NaN or infinite and are zero now.")
    if constant:
        which = f" in channel {', '.join(map(str, constant))}" if len(array) > 1 else ""
        warnings.append(f"{where}: all voxels have the same value{which}.")
    known = found.orientation_known
    return MedicalImage(array, found.grid, found.header, Path(path), tuple(warnings), constant, known, replaced)


def checked_labels(found: Decoded, path: Path | str, where: str) -> LabelMap:
    """Decoded numbers as a LabelMap of whole numbers, never cast before that was checked."""
    channels = len(found.stored)
    if channels > 1:
        raise InputError(f"{where}: {channels} channels; a label map has one. Give one label map per case.")
    labels, rounded = whole_numbers(found.stored[0], found.slope, found.inter, where)
    return LabelMap(labels, found.grid, found.header, Path(path), (*found.warnings, *rounded))


def storable_labels(labels: npt.ArrayLike, shape: Shape) -> npt.NDArray[Any]:
    """Labels (i, j, k) in the smallest unsigned type.

    Raises:
        ValueError: they are not whole numbers from 0 on, or do not lie on the grid.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iub":
        raise ValueError(f"Labels are whole numbers, not {array.dtype}.")
    if array.shape != shape:
        raise ValueError(f"Labels of shape {array.shape} do not lie on a grid of {shape}.")
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise ValueError(f"A label map for output holds values from 0 on, not {low}.")
    return array.astype(smallest_type(low, high), copy=False)


def storable_channels(array: npt.ArrayLike, shape: Shape) -> npt.NDArray[Any]:
    """Channels (C, i, j, k) that lie on the grid."""
    channels = np.asarray(array)
    if channels.ndim != 4 or channels.shape[1:] != shape:
        raise ValueError(f"Channels of shape {channels.shape} do not lie on a grid of {shape}.")
    return channels


def compressed(pieces: Iterable[bytes], *, level: int, format_bits: int) -> Iterator[bytes]:
    """Bytes packed as one gzip or zlib stream (``format_bits`` is GZIP or ZLIB); equal input gives equal bytes."""
    coder = zlib.compressobj(level, zlib.DEFLATED, format_bits)
    for piece in pieces:
        yield coder.compress(piece)
    yield coder.flush()


def same_values(again: npt.NDArray[Any], written: npt.NDArray[Any], path: Path | str) -> None:
    """What was written must come back (intensities as float32); slice by slice, without a third array."""
    kind = np.float32 if again.dtype == np.float32 else written.dtype
    same = again.shape == written.shape and all(
        np.array_equal(again[..., k], written[..., k].astype(kind, copy=False)) for k in range(written.shape[-1])
    )
    if not same:
        raise ResourceError(f"Cannot write {shown(path)}: other voxels come back from the disk. Check the disk.")
