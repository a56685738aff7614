"""Where voxels are: the one place for conventions of axes, millimetres and orientation.

Axes
    Arrays are indexed (i, j, k), with channels first: (C, i, j, k). A 2D image has k = 1; of a photograph i is the
    column (to the right) and j the row (downwards).
Millimetres
    World coordinates (x, y, z) are RAS+: x grows to the patient's right, y to anterior, z to superior, in mm.
Affine
    A float64 4x4 matrix that takes the index of a voxel's centre to the world: (x, y, z, 1) = affine @ (i, j, k, 1).
    Column a of its upper left 3x3 part is the step, in mm, to the next voxel along axis a; its length is the spacing.
    An image without millimetres (a PNG) has ``affine = None``, so ``spacing_mm = None``: never 1.0, never 999.
Orientation
    Three letters, one per axis, that name the direction in which the index grows: "RAS", "LPS", "PIR".

What was done to a case's geometry travels with it as a :class:`SpatialTrail` (trail.py has the steps).
"""

from medmamba.geometry.grid import (
    LARGEST_SPACING_MM,
    MOST_VOXELS,
    SAME_GRID_TOLERANCE,
    SHEAR_TOLERANCE,
    SMALLEST_SPACING_MM,
    Affine,
    Grid,
    Shape,
    Spacing,
    affine_from,
    affine_problem,
    all_reorientations,
    canonical_reorientation,
    grid_difference,
    same_box,
)
from medmamba.geometry.trail import (
    Crop,
    Pad,
    Reorient,
    Resample,
    Resampler,
    SpatialTrail,
    TrailStep,
    reindexed,
)

__all__ = [
    "LARGEST_SPACING_MM",
    "MOST_VOXELS",
    "SAME_GRID_TOLERANCE",
    "SHEAR_TOLERANCE",
    "SMALLEST_SPACING_MM",
    "Affine",
    "Crop",
    "Grid",
    "Pad",
    "Reorient",
    "Resample",
    "Resampler",
    "Shape",
    "Spacing",
    "SpatialTrail",
    "TrailStep",
    "affine_from",
    "affine_problem",
    "all_reorientations",
    "canonical_reorientation",
    "grid_difference",
    "reindexed",
    "same_box",
]
