"""Conventions of axes, millimetres and orientation (in full: docs/explanation/geometry.md).

Arrays are (C, i, j, k), in a 2D image k = 1. The world (x, y, z) is RAS+, in mm. An affine is a float64 4x4 matrix that
takes the index of a voxel's centre to the world; an image without millimetres (a PNG) has ``affine = None``, so
``spacing_mm = None``: never 1.0, never 999. What was done to a case's geometry travels with it (trail.py).
"""

from medmamba.geometry.grid import (
    Affine,
    Grid,
    Shape,
    Spacing,
    affine_from,
    affine_problem,
    all_reorientations,
    grid_difference,
)
from medmamba.geometry.trail import Crop, Pad, Reorient, Resample, SpatialTrail, reindexed

__all__ = [
    "Affine",
    "Crop",
    "Grid",
    "Pad",
    "Reorient",
    "Resample",
    "Shape",
    "Spacing",
    "SpatialTrail",
    "affine_from",
    "affine_problem",
    "all_reorientations",
    "grid_difference",
    "reindexed",
]
