"""The voxel side of the fingerprint: one case's facts and its sampled foreground intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmamba.geometry import Grid
from medmamba.plans.fingerprint import CaseStats, draw_foreground
from medmamba.preprocessing.case import bounding_box
from medmamba.trail import Reorient, SpatialTrail


@dataclass(frozen=True)
class MeasuredCase:
    """Facts of one case and ``foreground`` (channels, samples) of its intensities."""

    stats: CaseStats
    foreground: NDArray[np.float32]


def measure_case(
    case_id: str,
    image: NDArray[np.generic],
    labels: NDArray[np.integer],
    grid: Grid,
    label_values: Mapping[str, int],
    *,
    samples: int,
    annotated: Sequence[str] | None = None,
) -> MeasuredCase:
    """Measure an image (C, i, j, k) and its label map (i, j, k); draw ``samples`` foreground voxels per channel.

    Foreground are the voxels of a label: neither background nor ignored.
    """
    trail = SpatialTrail(grid).then(Reorient.to_canonical(grid))
    array, truth = trail.apply(image), trail.apply(labels[None])[0]
    start, stop = bounding_box((array != 0).any(axis=0, keepdims=True)[0])
    values, counts = np.unique(truth, return_counts=True)
    by_value = dict(zip(values.tolist(), counts.tolist(), strict=True))
    foreground = array[:, np.isin(truth, [value for value in label_values.values() if value != 0])].astype(np.float32)
    stats = CaseStats(
        case_id=case_id,
        shape=trail.grid.shape,
        spacing_mm=trail.grid.spacing_mm,
        orientation=grid.orientation,
        shape_after_crop=(stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]),
        label_voxels={name: by_value.get(value, 0) for name, value in label_values.items()},
        annotated_labels=None if annotated is None else list(annotated),
    )
    return MeasuredCase(stats, draw_foreground(foreground, samples, case_id=case_id))
