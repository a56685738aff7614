"""The invertible steps from a case's native grid to the plan's grid: reorient, crop, resample, pad.

Each step is a frozen record that knows the grid it starts from, the grid it gives, and how to carry an array
(C, i, j, k) forward and back. Reorient, crop and pad only move voxels, so they return exactly what went in.
How values are interpolated is not decided here: the caller passes the function to :class:`Resample` steps.

    trail = SpatialTrail(native=image.grid).then(Reorient.to_canonical(image.grid))
    trail = trail.then(Crop(trail.grid.shape, start=(4, 0, 2), stop=(90, 80, 30)))
    array = trail.apply(image.array)
    labels = trail.undo(prediction, fill=0)      # on the image's own grid again
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from medmamba.geometry.grid import Grid, Shape, Spacing, canonical_reorientation, same_box

Array = npt.NDArray[Any]
Fill = float | int | npt.NDArray[Any]  # one value, or one per channel (C,)


class Resampler(Protocol):
    """Interpolates an array (C, i, j, k) to another shape over the same field of view."""

    def __call__(
        self, array: Array, shape: Shape, spacing_from_mm: Spacing | None, spacing_to_mm: Spacing | None, /
    ) -> Array: ...


class TrailStep(Protocol):
    """One change of geometry."""

    @property
    def shape_before(self) -> Shape: ...
    @property
    def shape_after(self) -> Shape: ...
    def grid_after(self, grid: Grid) -> Grid: ...
    def apply(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array: ...
    def undo(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array: ...


@dataclass(frozen=True)
class Reorient:
    """Axis a of the result is axis ``permutation[a]`` of the input, reversed where ``flips[a]``.

    With no flips it is the plan's change of axis order (nnU-Net's "transpose").
    """

    shape_before: Shape
    permutation: Shape
    flips: tuple[bool, bool, bool] = (False, False, False)

    def __post_init__(self) -> None:
        _freeze(self, "shape_before", "permutation")
        object.__setattr__(self, "flips", tuple(bool(f) for f in self.flips))
        if sorted(self.permutation) != [0, 1, 2]:
            raise ValueError(f"An axis order holds 0, 1 and 2 once each, not {self.permutation}.")

    @classmethod
    def to_canonical(cls, grid: Grid) -> Reorient:
        """The step that brings ``grid`` to RAS+ axes (see geometry.canonical_reorientation)."""
        permutation, flips = canonical_reorientation(grid)
        return cls(grid.shape, permutation, flips)

    @property
    def shape_after(self) -> Shape:
        return _shape(self.shape_before[axis] for axis in self.permutation)

    def grid_after(self, grid: Grid) -> Grid:
        if grid.affine is None:
            return Grid(self.shape_after)
        affine = grid.affine.copy()
        for axis, (source, flip) in enumerate(zip(self.permutation, self.flips, strict=True)):
            column = grid.affine[:3, source]
            affine[:3, axis] = -column if flip else column
            if flip:  # the last voxel becomes the first
                affine[:3, 3] += column * (grid.shape[source] - 1)
        return Grid(self.shape_after, affine)

    def apply(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        _expect(array, self.shape_before)
        moved = array.transpose(0, *(1 + axis for axis in self.permutation))
        return moved[(slice(None), *self._direction())]

    def undo(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        _expect(array, self.shape_after)
        moved = array[(slice(None), *self._direction())]
        inverse = np.argsort(self.permutation)
        return moved.transpose(0, *(1 + int(axis) for axis in inverse))

    def _direction(self) -> list[slice]:
        return [slice(None, None, -1) if flip else slice(None) for flip in self.flips]


@dataclass(frozen=True)
class Crop:
    """Keeps the voxels ``start`` (included) to ``stop`` (not included) along each axis."""

    shape_before: Shape
    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        _freeze(self, "shape_before", "start", "stop")
        if any(not 0 <= a < b <= n for a, b, n in zip(self.start, self.stop, self.shape_before, strict=True)):
            raise ValueError(f"A box from {self.start} to {self.stop} does not lie inside {self.shape_before}.")

    @property
    def shape_after(self) -> Shape:
        return _shape(b - a for a, b in zip(self.start, self.stop, strict=True))

    def grid_after(self, grid: Grid) -> Grid:
        return _shifted(grid, self.start, self.shape_after)

    def apply(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        _expect(array, self.shape_before)
        return array[self._box()]

    def undo(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        """Puts the box back; voxels outside it hold ``fill`` (background)."""
        _expect(array, self.shape_after)
        whole = _filled(array, self.shape_before, fill)
        whole[self._box()] = array
        return whole

    def _box(self) -> tuple[slice, ...]:
        return (slice(None), *(slice(a, b) for a, b in zip(self.start, self.stop, strict=True)))


@dataclass(frozen=True)
class Pad:
    """Adds ``before`` and ``after`` voxels at the two ends of each axis."""

    shape_before: Shape
    before: Shape
    after: Shape
    mode: Literal["constant", "edge"] = "constant"

    def __post_init__(self) -> None:
        _freeze(self, "shape_before", "before", "after")
        if min(*self.before, *self.after) < 0:
            raise ValueError(f"Padding is never negative: {self.before} before, {self.after} after.")
        if self.mode not in ("constant", "edge"):
            raise ValueError(f"Padding is 'constant' or 'edge', not {self.mode!r}.")

    @classmethod
    def to_at_least(cls, shape: Shape, smallest: Shape, mode: Literal["constant", "edge"] = "constant") -> Pad:
        """Pads ``shape`` evenly on both sides until no axis is below ``smallest``."""
        missing = [max(0, want - have) for have, want in zip(shape, smallest, strict=True)]
        return cls(shape, _shape(m // 2 for m in missing), _shape(m - m // 2 for m in missing), mode)

    @property
    def shape_after(self) -> Shape:
        return _shape(b + n + a for b, n, a in zip(self.before, self.shape_before, self.after, strict=True))

    def grid_after(self, grid: Grid) -> Grid:
        return _shifted(grid, _shape(-b for b in self.before), self.shape_after)

    def apply(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        _expect(array, self.shape_before)
        if self.mode == "edge":
            return np.pad(array, ((0, 0), *zip(self.before, self.after, strict=True)), mode="edge")
        whole = _filled(array, self.shape_after, fill)
        whole[self._inside()] = array
        return whole

    def undo(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        _expect(array, self.shape_after)
        return array[self._inside()]

    def _inside(self) -> tuple[slice, ...]:
        return (slice(None), *(slice(b, b + n) for b, n in zip(self.before, self.shape_before, strict=True)))


@dataclass(frozen=True)
class Resample:
    """Another number of voxels over the same field of view (voxel edges meet at both ends).

    ``spacing_after_mm`` is what the plan asked for. The spacing that comes out differs from it by the rounding of
    the shape; ``grid_after`` holds the exact one.
    """

    shape_before: Shape
    shape_after: Shape
    spacing_before_mm: Spacing | None = None
    spacing_after_mm: Spacing | None = None

    def __post_init__(self) -> None:
        _freeze(self, "shape_before", "shape_after")
        for name in ("spacing_before_mm", "spacing_after_mm"):
            if (spacing := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(float(mm) for mm in spacing))

    def grid_after(self, grid: Grid) -> Grid:
        if grid.affine is None:
            return Grid(self.shape_after)
        factor = np.array(self.shape_before) / np.array(self.shape_after)
        affine = grid.affine.copy()
        affine[:3, :3] = grid.affine[:3, :3] * factor
        affine[:3, 3] += grid.affine[:3, :3] @ ((factor - 1) / 2)
        return Grid(self.shape_after, affine)

    def apply(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        _expect(array, self.shape_before)
        return self._carry(array, self.shape_after, self.spacing_before_mm, self.spacing_after_mm, resample)

    def undo(self, array: Array, *, resample: Resampler | None = None, fill: Fill = 0) -> Array:
        _expect(array, self.shape_after)
        return self._carry(array, self.shape_before, self.spacing_after_mm, self.spacing_before_mm, resample)

    @staticmethod
    def _carry(
        array: Array, shape: Shape, from_mm: Spacing | None, to_mm: Spacing | None, resample: Resampler | None
    ) -> Array:
        if _shape(array.shape[1:]) == shape:
            return array
        if resample is None:
            raise ValueError("This trail changes the spacing: pass the function that interpolates as `resample`.")
        result = resample(array, shape, from_mm, to_mm)
        _expect(result, shape)
        return result


_STEPS: dict[str, Any] = {"reorient": Reorient, "crop": Crop, "resample": Resample, "pad": Pad}


@dataclass(frozen=True)
class SpatialTrail:
    """The steps that took a case from its native grid to where it is now."""

    native: Grid
    steps: tuple[TrailStep, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        shape = self.native.shape
        for step in self.steps:
            if step.shape_before != shape:
                raise ValueError(f"{step} starts at {step.shape_before}, but the trail has reached {shape}.")
            shape = step.shape_after

    def then(self, *steps: TrailStep) -> SpatialTrail:
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

        Args:
            resample: called for each Resample step; not needed when there is none.
            fill: value of voxels that a crop had left out: background 0 for a label map (1, i, j, k), or one value
                per channel (C,) for probabilities.
        """
        for step in reversed(self.steps):
            array = step.undo(array, resample=resample, fill=fill)
        return array

    def split_resampling(self) -> tuple[SpatialTrail, Resample]:
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
    def from_dict(cls, record: Mapping[str, Any]) -> SpatialTrail:
        """The trail that :meth:`as_dict` wrote."""
        steps = []
        for entry in record["steps"]:
            values = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items() if key != "step"}
            steps.append(_STEPS[entry["step"]](**values))
        affine = None if record["affine"] is None else np.array(record["affine"], dtype=np.float64)
        return cls(Grid(tuple(record["shape"]), affine), tuple(steps))


def reindexed(array: Array, grid: Grid, onto: Grid) -> Array | None:
    """An array (C, i, j, k) on ``grid``, stored as ``onto`` stores the same box: axes exchanged and reversed only.

    Returns None when the two grids are not the same voxels of the world, so that values would have to be invented.
    """
    here, there = (SpatialTrail(g).then(Reorient.to_canonical(g)) for g in (grid, onto))
    if not same_box(here.grid, there.grid):
        return None
    return there.undo(here.apply(array))


def _shape(values: Any) -> Shape:
    i, j, k = (int(v) for v in values)
    return i, j, k


def _freeze(step: object, *names: str) -> None:
    for name in names:
        object.__setattr__(step, name, _shape(getattr(step, name)))


def _expect(array: Array, shape: Shape) -> None:
    if array.ndim != 4 or tuple(array.shape[1:]) != shape:
        raise ValueError(f"Expected an array (C, {', '.join(map(str, shape))}), not {tuple(array.shape)}.")


def _filled(array: Array, shape: Shape, fill: Fill) -> Array:
    whole = np.empty((array.shape[0], *shape), dtype=array.dtype)
    whole[...] = np.reshape(fill, (-1, 1, 1, 1)) if np.ndim(fill) else fill
    return whole


def _shifted(grid: Grid, start: Shape, shape: Shape) -> Grid:
    if grid.affine is None:
        return Grid(shape)
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ np.array(start, dtype=np.float64)
    return Grid(shape, affine)
