"""Memory of the cases on a plan's grid, checked before anything is resampled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medmamba.errors import ConfigError
from medmamba.geometry import MOST_VOXELS
from medmamba.plans.fingerprint import CaseStats, Fingerprint
from medmamba.plans.schema import Configuration

BYTES_PER_VOXEL = 8
"""One float32 of the image as it was and one as it becomes; label maps are small beside them."""


def resampled_shape(case: CaseStats, configuration: Configuration, axis_order: Sequence[int]) -> list[int]:
    """Shape of a case on the grid of a configuration, in plan axes."""
    shape = [case.shape_after_crop[axis] for axis in axis_order]
    if case.spacing_mm is None or configuration.spacing_mm is None:
        return shape
    spacing = [case.spacing_mm[axis] for axis in axis_order]
    target = configuration.spacing_mm if configuration.spatial_dims == 3 else [spacing[0], *configuration.spacing_mm]
    return [max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, target, strict=True)]


def refuse_oversize(
    fingerprint: Fingerprint,
    configuration: Configuration,
    axis_order: Sequence[int],
    *,
    memory_bytes: float = math.inf,
    most_voxels: int = MOST_VOXELS,
) -> None:
    """Raises ConfigError when a case is too large on the grid of a configuration, with the nearest spacing that fits.

    ``memory_bytes`` is the main memory of this machine.
    """
    channels = len(fingerprint.channel_names)
    limit = min(most_voxels, memory_bytes / BYTES_PER_VOXEL)
    for case in fingerprint.cases:
        shape = resampled_shape(case, configuration, axis_order)
        voxels = math.prod(shape) * channels
        if voxels <= limit:
            continue
        shown = "x".join(map(str, shape))
        nearest = ""
        if configuration.spacing_mm is not None:
            factor = (voxels / limit) ** (1 / configuration.spatial_dims)
            spacing = ", ".join(f"{math.ceil(1000 * value * factor) / 1000:g}" for value in configuration.spacing_mm)
            nearest = f" Nearest spacing that fits: {spacing} mm (plan axes)."
        raise ConfigError(
            f"{case.case_id}: would have {shown} voxels x {channels} channel(s) in configuration "
            f"{configuration.name}, {voxels * BYTES_PER_VOXEL / 2**30:.1f} GiB while it is resampled; "
            f"{limit * BYTES_PER_VOXEL / 2**30:.1f} GiB is the most here.{nearest}"
        )
