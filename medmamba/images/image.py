"""Records of an image and of a label map: voxels, grid, and the header that masks on the same grid are written with."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.geometry import Grid, reindexed


@dataclass(frozen=True, eq=False)
class Volume:
    """The common part of images and label maps.

    Args:
        array: the voxels. Memory is ordered as in the file (i fastest); it is not C-contiguous.
        grid: shape (i, j, k) and affine, in RAS+ mm.
        header: what the file's format needs to write a mask on the same grid, bit for bit; nothing about the patient.
        path: the file it came from (the first, if each channel has one).
        warnings: what was unusual and accepted, one sentence each.
    """

    array: npt.NDArray[Any]
    grid: Grid
    header: Any = None
    path: Path | None = None
    warnings: tuple[str, ...] = ()

    def content_hash(self) -> str:
        """SHA-256 of shape and values: the same for two files that hold the same, whatever type they were stored in."""
        kind = "<f4" if self.array.ndim == 4 else "<i8"
        digest = hashlib.sha256(repr(self.array.shape).encode())
        for channel in self.array if self.array.ndim == 4 else self.array[None]:
            for sheet in np.moveaxis(channel, 2, 0):
                digest.update(np.ascontiguousarray(sheet.T, dtype=kind).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class MedicalImage(Volume):
    """One image of one case: float32 (C, i, j, k), finite.

    Args:
        constant_channels: channels that hold one value only.
        orientation_known: False if the file does not say where left and right are.
        nonfinite_voxels: how many NaN or infinite voxels were set to zero on request.
    """

    constant_channels: tuple[int, ...] = ()
    orientation_known: bool = True
    nonfinite_voxels: int = 0

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.array.shape[0])

    def with_channels(self, count: int, name: str) -> "MedicalImage":
        """A flat picture in grey as three equal colours or the reverse, where that many are wanted; else the image.

        Editors and converters store either, whatever the others of a set are.
        """
        if self.grid.affine is not None or self.grid.shape[2] != 1 or {count, self.channels} != {1, 3}:
            return self
        if count == 1 and not all(np.array_equal(self.array[0], colour) for colour in self.array[1:]):
            return self
        array = self.array[:1] if count == 1 else np.repeat(self.array, 3, axis=0)
        how = "grey in three equal colours, taken as grey" if count == 1 else "grey, taken as three equal colours"
        constant = tuple(range(count)) if self.constant_channels else ()
        return replace(self, array=array, constant_channels=constant, warnings=(*self.warnings, f"{name}: {how}."))


@dataclass(frozen=True, eq=False)
class LabelMap(Volume):
    """A whole number per voxel (i, j, k), in the smallest integer type that holds them all."""

    def on_grid_of(self, image: "MedicalImage | LabelMap", *, match_labels: bool = False) -> "LabelMap | None":
        """The label map on the grid of an image, if both are of one lattice of voxels.

        None where voxels would have to be interpolated or lost, or, without ``match_labels``, if the axes differ in
        order or direction.
        """
        placed = reindexed(self.array[None], self.grid, image.grid)
        if placed is None or not (match_labels or self.grid.orientation == image.grid.orientation):
            return None
        return LabelMap(placed[0], image.grid, image.header, self.path, self.warnings)

    def counts(self) -> dict[int, int]:
        """Voxels per value, for the values that occur; counted once."""
        return dict(self._counts)

    @cached_property
    def _counts(self) -> dict[int, int]:
        return label_counts(self.array)


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
    kind = np.min_scalar_type(high if low >= 0 else min(low, -high - 1))
    if kind.kind not in "iu":
        raise ValueError(f"no integer type holds both {low} and {high}")
    return kind
