"""How an array is shown on every page: in radiological convention, as its affine says; without an affine as stored.

Axial: the patient's right on the left, anterior on top. Coronal: right on the left, superior on top. Sagittal: anterior
on the left, superior on top. An image without millimetres keeps its first row on top, and pixels are square.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medmamba.geometry.grid import Affine, Grid, Shape, Spacing, canonical_reorientation, separate_axis
from medmamba.geometry.trail import Array, Reorient

PLANES = ("sagittal", "coronal", "axial")
"""The plane of the slices across the first, second and third axis of a displayed array."""
IN_PLANE = ((2, 1), (2, 0), (1, 0))
"""For each plane the axes of a displayed array that are its rows (downwards) and its columns (to the right)."""


@dataclass(frozen=True)
class Display:
    """A grid as it is shown: its array with axes that run left, posterior and inferior, or as stored."""

    stored: Grid
    order: Sequence[int] = (0, 1, 2)
    """Of an array without an affine: which axis of its file each of its axes is."""

    @cached_property
    def step(self) -> Reorient:
        """From the stored axes to the displayed ones."""
        if self.stored.affine is None:
            i, j, k = (int(axis) for axis in np.argsort(self.order))
            return Reorient(self.stored.shape, (i, j, k))
        permutation, (right, anterior, superior) = canonical_reorientation(self.stored)
        return Reorient(self.stored.shape, permutation, (not right, not anterior, not superior))

    @cached_property
    def grid(self) -> Grid:
        """The displayed grid."""
        return self.step.grid_after(self.stored)

    @property
    def spacing(self) -> Spacing:
        """Distance of neighbouring voxels along the displayed axes: in mm, or 1 without millimetres."""
        return self.grid.spacing_mm or (1.0, 1.0, 1.0)

    @property
    def letters(self) -> tuple[str, str, str]:
        """Towards which side of the patient each displayed axis begins and ends, as "RL"; "" without an affine."""
        return ("", "", "") if self.stored.affine is None else ("RL", "AP", "SI")

    @cached_property
    def plane(self) -> int:
        """The plane of a single picture, as an index of ``PLANES``: that of the slices as they were acquired.

        An image of one slice is shown along that slice, an anisotropic volume across its coarsest axis, any other
        volume in axial slices.
        """
        flat = [axis for axis in (2, 1, 0) if self.grid.shape[axis] == 1]
        coarse = None if self.stored.affine is None else separate_axis(self.spacing, self.spacing)
        return flat[0] if flat else 2 if coarse is None else coarse

    def volume(self, array: Array) -> Array:
        """An array (..., i, j, k) of the stored grid with displayed axes."""
        flat = array.reshape(-1, *array.shape[-3:])
        return self.step.apply(flat).reshape(*array.shape[:-3], *self.grid.shape)

    def number(self, plane: int, index: int) -> int:
        """The number of a slice, from 1, counted as the voxels of RAS+ images are: from left, posterior, inferior."""
        return index + 1 if self.stored.affine is None else self.grid.shape[plane] - index


def slice_of(volume: Array, plane: int, index: int) -> Array:
    """A slice (..., rows, columns) of a displayed array (..., i, j, k), first row on top."""
    return np.swapaxes(volume.take(index, axis=plane - 3), -1, -2)


def pixels_of(shape: Shape, spacing: Spacing, plane: int, edge: int) -> tuple[int, int]:
    """Rows and columns of a picture of a plane whose longer side has ``edge`` pixels; millimetres are square."""
    rows, columns = (shape[axis] * spacing[axis] for axis in IN_PLANE[plane])
    longest = max(rows, columns)
    return max(1, round(edge * rows / longest)), max(1, round(edge * columns / longest))


def axes_affine(order: Shape, spacing_mm: Spacing) -> Affine:
    """The affine, without origin, of an array whose axis a runs along axis ``order[a]`` of RAS+."""
    affine = np.zeros((4, 4))
    affine[order, range(3)] = spacing_mm
    affine[3, 3] = 1.0
    return affine
