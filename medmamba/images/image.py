"""Records of an image and of a label map: voxels, grid, and the header that masks on the same grid are written with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.geometry import Grid


@dataclass(frozen=True, eq=False)
class MedicalImage:
    """One image of one case.

    Args:
        array: float32 (C, i, j, k), finite. Memory is ordered as in the file (i fastest); it is not C-contiguous.
        grid: shape (i, j, k) and affine, in RAS+ mm.
        header: what the file's format needs to write a mask on the same grid, bit for bit; nothing about the patient.
        path: the file it came from (the first, if each channel has one).
        warnings: what was unusual and accepted, one sentence each.
        constant_channels: channels that hold one value only.
        orientation_known: False if the file does not say where left and right are.
        nonfinite_voxels: how many NaN or infinite voxels were set to zero on request.
    """

    array: npt.NDArray[np.float32]
    grid: Grid
    header: Any = None
    path: Path | None = None
    warnings: tuple[str, ...] = ()
    constant_channels: tuple[int, ...] = ()
    orientation_known: bool = True
    nonfinite_voxels: int = 0

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.array.shape[0])

    def content_hash(self) -> str:
        """SHA-256 of shape and voxel values: the same for two files that hold the same image."""
        digest = hashlib.sha256(repr(self.array.shape).encode())
        for channel in self.array:
            digest.update(np.ascontiguousarray(channel.T, dtype="<f4").data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A whole number per voxel.

    Args:
        array: (i, j, k), the smallest integer type that holds its values.
        grid, header, path, warnings: as of :class:`MedicalImage`.
    """

    array: npt.NDArray[Any]
    grid: Grid
    header: Any = None
    path: Path | None = None
    warnings: tuple[str, ...] = ()

    def counts(self) -> dict[int, int]:
        """Voxels per value, for the values that occur; counted once."""
        return dict(self._counts)

    @cached_property
    def _counts(self) -> dict[int, int]:
        return label_counts(self.array)

    def content_hash(self) -> str:
        """SHA-256 of shape and values, whatever type they were stored in."""
        digest = hashlib.sha256(repr(self.array.shape).encode())
        for sheet in np.moveaxis(self.array, 2, 0):
            digest.update(np.ascontiguousarray(sheet.T, dtype="<i8").data)
        return digest.hexdigest()


def label_counts(labels: npt.NDArray[Any]) -> dict[int, int]:
    """Voxels per value of an integer array, for the values that occur, in ascending order."""
    low, high = int(labels.min()), int(labels.max())
    if high - low < 1 << 16:
        flat = labels.ravel(order="K")
        counts = np.zeros(high - low + 1, dtype=np.int64)
        for start in range(0, flat.size, 1 << 22):  # bincount widens its input to int64
            counts += np.bincount(flat[start : start + (1 << 22)].astype(np.int64) - low, minlength=len(counts))
        return {low + int(offset): int(counts[offset]) for offset in np.flatnonzero(counts)}
    values, numbers = np.unique(labels, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, numbers, strict=True)}


def first_voxel(where: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Index of the first True of an array, in the file's order (i fastest)."""
    flat = int(np.argmax(where.ravel(order="F")))
    return tuple(int(n) for n in np.unravel_index(flat, where.shape, order="F"))


def smallest_type(low: int, high: int) -> np.dtype[Any]:
    """The smallest integer type that holds all values from ``low`` to ``high``; unsigned if it can be."""
    for kind in ("u1", "u2", "u4", "u8") if low >= 0 else ("i1", "i2", "i4", "i8"):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return np.dtype(kind)
    raise ValueError(f"no integer type holds both {low} and {high}")
