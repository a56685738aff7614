"""The invertible steps from a case's native grid to the plan's grid: reorient, crop, resample, pad.

Reorient, crop and pad only move voxels, so they are inverted exactly. Interpolation is not defined here:
the caller passes a function to :class:`Resample` steps. docs/explanation/geometry.md has an example.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medmamba.geometry.grid import Affine, Grid, Shape, Spacing, canonical_reorientation, same_box

Array = npt.NDArray[Any]
Fill = float | int | npt.NDArray[Any]  # one value, or one per channel (C,)
Resampler = Callable[[Array, Shape, Spacing | None, Spacing | None], Array]
"""Interpolates an array (C, i, j, k) to another shape over the same field of view; spacings before and after in mm."""


class TrailStep:
    """One change of geometry: its shapes, the grid it gives, and how an array (C, i, j, k) is carried there and back.

    A subclass is a frozen record that defines the four names below; ``_move`` changes an affine (4, 4) in place.
    """

    shape_before: Shape

    if TYPE_CHECKING:

        @property
        def shape_after(self) -> Shape: ...
        @property
        def inverse(self) -> "TrailStep": ...
        def _move(self, affine: Affine) -> None: ...
        def _carry(self, array: Array, resample: Resampler | None, fill: Fill) -> Array: ...

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # NumPy's numbers and JSON's lists become plain tuples
            if (value := getattr(self, field.name)) is not None:
                object.__setattr__(self, field.name, tuple(np.asarray(value).tolist()))

    def grid_after(self, grid: Grid) -> Grid:
        """The grid at the end of the step, of an image without millimetres too."""
        if grid.affine is None:
            return Grid(self.shape_after)
        affine = grid.affine.copy()
        self._move(affine)
        return Grid(self.shape_after, affine)

    def apply(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        """The array at the end of the step; ``fill`` is the value of voxels that are added."""
        _expect(array, self.shape_before)
        carried = self._carry(array, resample, fill)
        _expect(carried, self.shape_after)
        return carried

    def undo(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        """The array at the beginning of the step; voxels that a crop left out hold ``fill``."""
        return self.inverse.apply(array, resample=resample, fill=fill)


@dataclass(frozen=True)
class Reorient(TrailStep):
    """Axis a of the result is axis ``permutation[a]`` of the input, reversed where ``flips[a]``.

    With no flips it is the plan's change of axis order (nnU-Net's "transpose").
    """

    shape_before: Shape
    permutation: Shape
    flips: tuple[bool, bool, bool] = (False, False, False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.permutation) != [0, 1, 2]:
            raise ValueError(f"An axis order holds 0, 1 and 2 once each, not {self.permutation}.")

    @classmethod
    def to_canonical(cls, grid: Grid) -> "Reorient":
        """The step that brings ``grid`` to RAS+ axes (see geometry.canonical_reorientation)."""
        return cls(grid.shape, *canonical_reorientation(grid))

    @property
    def shape_after(self) -> Shape:
        return _shape(self.shape_before[axis] for axis in self.permutation)

    @property
    def inverse(self) -> "Reorient":
        order = _shape(np.argsort(self.permutation))
        i, j, k = (self.flips[axis] for axis in order)
        return Reorient(self.shape_after, order, (i, j, k))

    def _move(self, affine: Affine) -> None:
        columns = affine[:3, :3].copy()
        for axis, (source, flip) in enumerate(zip(self.permutation, self.flips, strict=True)):
            affine[:3, axis] = -columns[:, source] if flip else columns[:, source]
            if flip:  # the last voxel becomes the first
                affine[:3, 3] += columns[:, source] * (self.shape_before[source] - 1)

    def _carry(self, array: Array, resample: Resampler | None, fill: Fill) -> Array:
        moved = array.transpose(0, *(1 + axis for axis in self.permutation))
        return moved[(slice(None), *(slice(None, None, -1 if flip else None) for flip in self.flips))]


@dataclass(frozen=True)
class Crop(TrailStep):
    """Keeps the voxels ``start`` (included) to ``stop`` (not included) along each axis."""

    shape_before: Shape
    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not 0 <= a < b <= n for a, b, n in zip(self.start, self.stop, self.shape_before, strict=True)):
            raise ValueError(f"A box from {self.start} to {self.stop} does not lie inside {self.shape_before}.")

    @property
    def shape_after(self) -> Shape:
        return _shape(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def inverse(self) -> "Pad":
        after = _shape(n - b for b, n in zip(self.stop, self.shape_before, strict=True))
        return Pad(self.shape_after, self.start, after)

    def _move(self, affine: Affine) -> None:
        affine[:3, 3] += affine[:3, :3] @ np.array(self.start, dtype=np.float64)

    def _carry(self, array: Array, resample: Resampler | None, fill: Fill) -> Array:
        return array[(slice(None), *map(slice, self.start, self.stop))]


@dataclass(frozen=True)
class Pad(TrailStep):
    """Adds ``before`` and ``after`` voxels at the two ends of each axis."""

    shape_before: Shape
    before: Shape
    after: Shape

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(*self.before, *self.after) < 0:
            raise ValueError(f"Padding is never negative: {self.before} before, {self.after} after.")

    @property
    def shape_after(self) -> Shape:
        return _shape(b + n + a for b, n, a in zip(self.before, self.shape_before, self.after, strict=True))

    @property
    def inverse(self) -> Crop:
        stop = _shape(b + n for b, n in zip(self.before, self.shape_before, strict=True))
        return Crop(self.shape_after, self.before, stop)

    def _move(self, affine: Affine) -> None:
        affine[:3, 3] -= affine[:3, :3] @ np.array(self.before, dtype=np.float64)

    def _carry(self, array: Array, resample: Resampler | None, fill: Fill) -> Array:
        whole = np.empty((array.shape[0], *self.shape_after), dtype=array.dtype)
        whole[...] = np.reshape(fill, (-1, 1, 1, 1))
        self.inverse.apply(whole)[...] = array
        return whole


@dataclass(frozen=True)
class Resample(TrailStep):
    """Another number of voxels over the same field of view (voxel edges meet at both ends).

    ``spacing_after_mm`` is what the plan asked for. The spacing that comes out differs from it by the rounding of
    the shape; ``grid_after`` holds the exact one.
    """

    shape_before: Shape
    shape_after: Shape
    spacing_before_mm: Spacing | None = None
    spacing_after_mm: Spacing | None = None

    @property
    def inverse(self) -> "Resample":
        return Resample(self.shape_after, self.shape_before, self.spacing_after_mm, self.spacing_before_mm)

    def _move(self, affine: Affine) -> None:
        factor = np.array(self.shape_before) / np.array(self.shape_after)
        affine[:3, 3] += affine[:3, :3] @ ((factor - 1) / 2)
        affine[:3, :3] *= factor

    def _carry(self, array: Array, resample: Resampler | None, fill: Fill) -> Array:
        if self.shape_before == self.shape_after:
            return array
        if resample is None:
            raise ValueError("This trail changes the spacing: pass the function that interpolates as `resample`.")
        return resample(array, self.shape_after, self.spacing_before_mm, self.spacing_after_mm)


_STEPS: dict[str, Any] = {"reorient": Reorient, "crop": Crop, "resample": Resample, "pad": Pad}


@dataclass(frozen=True)
class SpatialTrail:
    """The steps that took a case from its native grid to where it is now."""

    native: Grid
    steps: tuple[TrailStep, ...] = ()

    def __post_init__(self) -> None:
        shape = self.native.shape
        for step in self.steps:
            if step.shape_before != shape:
                raise ValueError(f"{step} starts at {step.shape_before}, but the trail has reached {shape}.")
            shape = step.shape_after

    def then(self, *steps: TrailStep) -> "SpatialTrail":
        """The trail with more steps at its end."""
        return SpatialTrail(self.native, (*self.steps, *steps))

    @property
    def grid(self) -> Grid:
        """The grid at the end of the trail."""
        grid = self.native
        for step in self.steps:
            grid = step.grid_after(grid)
        return grid

    def apply(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        """Native array (C, i, j, k) to the end of the trail. ``fill`` is what padding adds."""
        for step in self.steps:
            array = step.apply(array, resample=resample, fill=fill)
        return array

    def undo(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        """Array (C, i, j, k) at the end of the trail back to the native grid.

        ``fill`` is the value of voxels that a crop had left out: background 0 for a label map (1, i, j, k), or one
        value per channel (C,) for probabilities.
        """
        for step in reversed(self.steps):
            array = step.undo(array, resample=resample, fill=fill)
        return array

    def split_resampling(self) -> "tuple[SpatialTrail, Resample]":
        """The trail up to its last step, and that step: the resampling with which every trail to a plan's grid ends."""
        *before, last = self.steps
        if not isinstance(last, Resample):
            raise ValueError(f"the trail ends with {last}, not with a Resample")
        return SpatialTrail(self.native, tuple(before)), last

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for a JSON file."""
        affine = None if self.native.affine is None else self.native.affine.tolist()
        names = {kind: name for name, kind in _STEPS.items()}
        steps = [{"step": names[type(step)], **asdict(step)} for step in self.steps]  # type: ignore[call-overload]
        return {"shape": list(self.native.shape), "affine": affine, "steps": steps}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "SpatialTrail":
        """The trail that :meth:`as_dict` wrote."""
        steps = []
        for entry in record["steps"]:
            values = dict(entry)
            steps.append(_STEPS[values.pop("step")](**values))
        affine = None if record["affine"] is None else np.array(record["affine"], dtype=np.float64)
        return cls(Grid(tuple(record["shape"]), affine), tuple(steps))


def reindexed(array: Array, grid: Grid, onto: Grid) -> Array | None:
    """An array (C, i, j, k) from ``grid`` to ``onto``, without interpolation; 0 where ``grid`` has no voxel.

    Axes are permuted and flipped, and a cropped array is padded. Returns None when the grids are not of one lattice, so
    that values would have to be interpolated; when ``grid`` is not inside ``onto``; and when it is smaller and begins
    at the same voxel, as an incomplete copy does.
    """
    here, there = (SpatialTrail(g).then(Reorient.to_canonical(g)) for g in (grid, onto))
    offset, moved = np.zeros(3), False
    if grid.affine is not None and onto.affine is not None:
        assert here.grid.affine is not None
        assert there.grid.affine is not None
        offset = np.rint(np.linalg.solve(there.grid.affine, here.grid.affine[:, 3])[:3])
        shifted = there.grid.affine.copy()
        shifted[:3, 3] += shifted[:3, :3] @ offset
        apart, steps = (grid.affine - onto.affine)[:3, 3], np.linalg.norm(onto.affine[:3, :3], axis=0)
        moved = bool(np.linalg.norm(apart) > steps.min() / 2)
        if not same_box(Grid(here.grid.shape, shifted), here.grid):
            return None
    stop = offset + here.grid.shape
    if (offset < 0).any() or (stop > there.grid.shape).any() or (here.grid.shape != there.grid.shape and not moved):
        return None
    placed = np.zeros((len(array), *there.grid.shape), array.dtype)
    placed[:, *(slice(int(a), int(b)) for a, b in zip(offset, stop, strict=True))] = here.apply(array)
    return there.undo(placed)


def _shape(values: Iterable[int]) -> Shape:
    i, j, k = (int(value) for value in values)
    return i, j, k


def _expect(array: Array, shape: Shape) -> None:
    if array.ndim != 4 or array.shape[1:] != shape:
        raise ValueError(f"Expected an array (C, {', '.join(map(str, shape))}), not {tuple(array.shape)}.")
