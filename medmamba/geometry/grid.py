"""The grid of an image: shape and affine, in the conventions of docs/explanation/geometry.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
import numpy.typing as npt

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Affine = npt.NDArray[np.float64]
Reorientation = tuple[Shape, tuple[bool, bool, bool]]
"""Axis order and flips."""

# Limits of what is taken for an image of a patient or a specimen.
SMALLEST_SPACING_MM = 0.01  # below: a header in metres or an empty one
LARGEST_SPACING_MM = 100.0  # above: a header in micrometres
ANY_SPACING_MM = (1e-7, 1e5)  # with any_spacing: 0.1 nm (electron microscopy) to 100 m
MOST_VOXELS = 2**31  # voxels times channels: 8 GiB in float32; more only on request
SHEAR_TOLERANCE = 1e-3  # |cosine| between two axes; gantry tilt of 0.06 degrees
SAME_GRID_TOLERANCE = 1e-3  # of the spacing, for the origin and for each axis' step
SAME_CORNER_VOXELS = 0.05  # by which a far corner may move: a rotation stored as a float32 quaternion is that rough
ANISOTROPY_THRESHOLD = 3.0
"""Ratio of coarsest to finest spacing (and of voxel counts) above which a volume counts as anisotropic.
Source: nnU-Net, ANISO_THRESHOLD."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels and its place in the world.

    Args:
        shape: number of voxels along (i, j, k), each at least 1.
        affine: (4, 4), voxel index to RAS+ mm, or None when the image has no millimetres.
    """

    shape: Shape
    affine: Affine | None = None

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"A grid has three axes of at least one voxel, not {tuple(self.shape)}.")
        object.__setattr__(self, "shape", shape)
        if self.affine is not None:
            affine = np.array(self.affine, dtype=np.float64)
            if affine.shape != (4, 4) or not np.isfinite(affine).all() or (affine[3] != (0, 0, 0, 1)).any():
                raise ValueError(f"An affine is a finite 4x4 matrix with last row 0 0 0 1, not {affine.tolist()}.")
            if np.linalg.det(affine[:3, :3]) == 0.0:
                raise ValueError("The affine is singular: two axes of the image point the same way.")
            affine.setflags(write=False)
            object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> Spacing | None:
        """Distance of neighbouring voxels along (i, j, k) in mm; None for an image without millimetres."""
        if self.affine is None:
            return None
        di, dj, dk = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return di, dj, dk

    @property
    def orientation(self) -> str | None:
        """Three letters such as "RAS"; None for an image without millimetres."""
        if self.affine is None:
            return None
        permutation, flips = canonical_reorientation(self)
        letters = ["", "", ""]
        for world, (axis, flip) in enumerate(zip(permutation, flips, strict=True)):
            letters[axis] = ("LPI" if flip else "RAS")[world]
        return "".join(letters)

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def voxel_volume_mm3(self) -> float | None:
        """Volume of one voxel in cubic mm; None for an image without millimetres."""
        return None if self.affine is None else float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def extent_mm(self) -> Spacing | None:
        """Field of view along (i, j, k) in mm, from voxel edge to voxel edge."""
        if (spacing := self.spacing_mm) is None:
            return None
        ei, ej, ek = (n * s for n, s in zip(self.shape, spacing, strict=True))
        return ei, ej, ek

    def __eq__(self, other: object) -> bool:
        return self._content == other._content if isinstance(other, Grid) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[Shape, bytes | None]:
        return self.shape, None if self.affine is None else (self.affine + 0.0).tobytes()  # no negative zeros


def affine_from(
    spacing_mm: Spacing, *, origin_mm: Spacing = (0.0, 0.0, 0.0), direction: Affine | None = None
) -> Affine:
    """The affine of a grid with this spacing, whose axes are the columns of ``direction`` (3, 3), in RAS+."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if direction is None else np.asarray(direction)) * np.asarray(spacing_mm)
    affine[:3, 3] = origin_mm
    return affine


def affine_problem(affine: npt.ArrayLike, *, any_spacing: bool = False) -> str | None:
    """Why this affine (4, 4) cannot be the geometry of an image; None if it can.

    ``any_spacing`` accepts spacings within ANY_SPACING_MM.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        return f"the affine is of shape {matrix.shape}, not (4, 4)"
    if not np.isfinite(matrix).all():
        return "the affine holds values that are not finite numbers"
    if (matrix[3] != (0, 0, 0, 1)).any():
        return f"the last row of the affine is {matrix[3].tolist()}, not 0 0 0 1"
    columns = matrix[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    least, most = ANY_SPACING_MM if any_spacing else (SMALLEST_SPACING_MM, LARGEST_SPACING_MM)
    for name, mm in zip("ijk", spacing, strict=True):
        if not least <= mm <= most:
            hint = "" if any_spacing else " (if right for all images, allow it with --any-spacing or any_spacing=True)"
            return f"the spacing along {name} is {mm:.6g} mm, outside {least:g} to {most:g} mm{hint}"
    directions = columns / spacing
    if abs(np.linalg.det(directions)) < 1e-6:
        return "the affine is singular: two axes of the image point the same way"
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if cosines.max() > SHEAR_TOLERANCE:
        a, b = np.unravel_index(int(cosines.argmax()), cosines.shape)
        angle = float(np.degrees(np.arccos(np.clip(cosines[a, b], 0, 1))))
        return (
            f"the axes {'ijk'[int(a)]} and {'ijk'[int(b)]} meet at {angle:.2f} degrees (shear, "
            "as from a tilted gantry); resample to a rectangular grid first"
        )
    return None


def grid_difference(first: Grid, second: Grid) -> str | None:
    """How two grids differ, in words, or None when they are the same.

    They are the same when the origin and the step along each axis differ by no more than a thousandth of the spacing,
    and no corner of the field of view by more than 0.05 voxel.
    """
    if first.shape != second.shape:
        return f"differ in shape: {first.shape} and {second.shape}"
    if first.affine is None or second.affine is None:
        return None
    spacing, other = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (first.affine, second.affine))
    moved = float(np.linalg.norm((second.affine - first.affine)[:3, 3])) > SAME_GRID_TOLERANCE * spacing.min()
    if not moved and same_box(first, second):
        return None
    if first.orientation != second.orientation:
        return f"differ in orientation: {first.orientation} and {second.orientation}"
    if not np.allclose(spacing, other, rtol=SAME_GRID_TOLERANCE):
        return f"differ in spacing (mm): {_numbers(spacing)} and {_numbers(other)}"
    if moved:
        return f"differ in origin (mm): {_numbers(first.affine[:3, 3])} and {_numbers(second.affine[:3, 3])}"
    shift = _corner_shift_mm(second.affine - first.affine, first.shape)
    return f"differ in place by up to {shift:.3g} mm (directions of the axes are not the same)"


def same_box(first: Grid, second: Grid) -> bool:
    """Whether two grids of one shape cover the same voxels of the world, to within 0.05 voxel at the corners."""
    if first.shape != second.shape or first.affine is None or second.affine is None:
        return first.shape == second.shape
    spacing, change = np.linalg.norm(first.affine[:3, :3], axis=0), second.affine - first.affine
    steps = np.linalg.norm(change[:3, :3], axis=0)  # one slice has no far corner
    near = bool((steps <= SAME_GRID_TOLERANCE * spacing).all())
    return near and _corner_shift_mm(change, first.shape) <= SAME_CORNER_VOXELS * spacing.min()


def _corner_shift_mm(change: Affine, shape: Shape) -> float:
    """How far a change of the affine moves the eight outer voxels at most."""
    corners = np.array([[*corner, 1.0] for corner in product(*((0, n - 1) for n in shape))]).T
    return float(np.linalg.norm(change[:3] @ corners, axis=0).max())


def canonical_reorientation(grid: Grid) -> Reorientation:
    """The axis order and the flips that bring a grid as close as possible to RAS+.

    Returns:
        (permutation, flips): axis a of the canonical array is axis ``permutation[a]`` of the stored one, reversed
        where ``flips[a]``. A grid without millimetres stays as it is.

    The choice is the same for all 48 ways to store one image, at exactly 45 degrees too: the largest sum of cosines
    with the world's axes wins, then the direction matrix that is first in a fixed order.
    """
    if grid.affine is None:
        return (0, 1, 2), (False, False, False)
    return _nearest_axes(grid.affine[:3, :3].tobytes())


@lru_cache(maxsize=256)
def _nearest_axes(axes: bytes) -> Reorientation:
    """:func:`canonical_reorientation` of the 3 x 3 part of an affine; most images of a dataset share it."""
    columns = np.frombuffer(axes, dtype=np.float64).reshape(3, 3)
    directions = columns / np.linalg.norm(columns, axis=0)

    def nearness(how: Reorientation) -> tuple[float, list[float]]:
        permutation, flips = how
        candidate = directions[:, permutation] * np.where(flips, -1.0, 1.0)
        return round(float(np.trace(candidate)), 6), (np.round(candidate, 6) + 0.0).ravel().tolist()

    return max(all_reorientations(), key=nearness)


def all_reorientations() -> list[Reorientation]:
    """The 48 ways to store one array: 6 axis orders times 8 combinations of flips."""
    return [
        ((a, b, c), (f, g, h)) for a, b, c in permutations(range(3)) for f, g, h in product((False, True), repeat=3)
    ]


def separate_axis(current_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis that is resampled on its own, because interpolating across it would invent anatomy, or None.

    The image's spacing decides where it is anisotropic, else the target's; two equally coarse axes are not separated.
    Source: nnU-Net 2.8.1, default_resampling.

    >>> separate_axis((5, 1, 1), (1, 1, 1)), separate_axis((3, 1, 1), (1, 1, 1))
    (0, None)
    """
    for spacing in (current_spacing, new_spacing):
        coarsest = max(spacing)
        if coarsest / min(spacing) > ANISOTROPY_THRESHOLD:
            axes = [axis for axis, value in enumerate(spacing) if value == coarsest]
            return axes[0] if len(axes) == 1 else None
    return None


def _numbers(values: npt.ArrayLike) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in np.asarray(values).tolist()) + ")"
