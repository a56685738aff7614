"""Between a kind of file and an image: what every reader finds, checked, and what every writer wrote, compared.

A module of a kind (see formats.py) has ``read(path, where, limits, prefer, mask=...)``, which gives a :class:`Decoded`;
``write(path, stored, like, mask=..., verify=...)``, which makes files whole or not at all; and ``same_place(found,
like)``, which says whether what came back from the disk lies where it should.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.errors import ResourceError
from medmamba.geometry import Grid, Shape
from medmamba.images.gate import check_memory, shown
from medmamba.images.image import LabelMap, MedicalImage, smallest_type
from medmamba.images.voxels import NonFinite, Stored, intensities, whole_numbers

Like = MedicalImage | LabelMap | Grid
"""Whose grid a file is written on."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """Numbers (C, i, j, k) as they are stored, where they lie, and what was odd.

    ``slope`` and ``inter`` make values of them; ``header`` is what a mask on this grid needs.
    """

    stored: Stored
    grid: Grid
    header: Any = None
    warnings: list[str] = field(default_factory=list)
    orientation_known: bool = True
    slope: float = 1.0
    inter: float = 0.0


def grid_of(like: Like) -> Grid:
    """The grid itself, or that of an image."""
    return like if isinstance(like, Grid) else like.grid


def checked_image(
    stored: Stored,
    grid: Grid,
    header: Any,
    path: Path | str,
    where: str,
    warnings: list[str],
    *,
    nonfinite: NonFinite = "error",
    slope: float = 1.0,
    inter: float = 0.0,
    orientation_known: bool = True,
) -> MedicalImage:
    """Stored numbers (C, i, j, k) as a MedicalImage: scaled, finite, constant channels noted."""
    check_memory(stored.size * 4, where)
    array, constant, replaced = intensities(stored, slope, inter, where, nonfinite)
    odd = list(warnings)
    if replaced:
        odd.append(f"{where}: {replaced} voxels were NaN or infinite and are zero now.")
    if constant:
        which = f" in channel {', '.join(map(str, constant))}" if len(array) > 1 else ""
        odd.append(f"{where}: all voxels have the same value{which}.")
    return MedicalImage(array, grid, header, Path(path), tuple(odd), constant, orientation_known, replaced)


def checked_labels(
    stored: Stored,
    grid: Grid,
    header: Any,
    path: Path | str,
    where: str,
    warnings: list[str],
    *,
    slope: float = 1.0,
    inter: float = 0.0,
) -> LabelMap:
    """Stored numbers (i, j, k) as a LabelMap: whole, never cast before that was checked."""
    labels, rounded = whole_numbers(stored, slope, inter, where)
    return LabelMap(labels, grid, header, Path(path), (*warnings, *rounded))


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


def same_values(again: npt.NDArray[Any], written: npt.NDArray[Any], path: Path | str) -> None:
    """What was written must come back (intensities as float32); slice by slice, without a third array."""
    kind = np.float32 if again.dtype == np.float32 else written.dtype
    same = again.shape == written.shape and all(
        np.array_equal(again[..., k], written[..., k].astype(kind, copy=False)) for k in range(written.shape[-1])
    )
    if not same:
        raise ResourceError(f"Cannot write {shown(path)}: other voxels come back from the disk. Check the disk.")
