"""The voxel side of the fingerprint: facts and sampled foreground intensities, case by case and put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.datasets import CaseSpec, DatasetReport, DatasetSpec, LoadedCase, check_dataset
from medmamba.geometry import Grid
from medmamba.plans.fingerprint import CaseStats, Fingerprint, build_fingerprint, draw_foreground, samples_per_case
from medmamba.preprocessing.case import bounding_box
from medmamba.trail import Reorient, SpatialTrail


@dataclass(frozen=True)
class MeasuredCase:
    """Facts of one case and ``foreground`` (channels, samples) of its intensities."""

    stats: CaseStats
    foreground: NDArray[np.float32]


def measure_dataset(
    spec: DatasetSpec, *, on_case: Callable[[int, int], None] | None = None, **checking: Any
) -> tuple[DatasetReport, Fingerprint]:
    """Check every training case and measure it while it is in memory.

    ``checking`` as of :func:`medmamba.datasets.check_dataset`. Raises InputErrors with all that is wrong.
    """
    samples = samples_per_case(len(spec.cases))

    def measure(case: CaseSpec, loaded: LoadedCase) -> MeasuredCase | None:
        if loaded.labels is None:
            return None
        image, truth = loaded.image, loaded.labels
        return measure_case(
            case.case_id, image.array, truth.array, image.grid, spec.labels, samples=samples, annotated=case.annotated
        )

    report = check_dataset(spec, visit=measure, on_case=on_case, **checking)
    measured = [(case.image_sha256, case.visited) for case in report.cases if case.visited is not None]
    fingerprint = build_fingerprint(
        spec.name,
        spec.channels,
        spec.labels,
        [found.stats.model_copy(update={"image_hash": digest}) for digest, found in measured],
        [np.concatenate([found.foreground[channel] for _, found in measured]) for channel in range(len(spec.channels))],
    )
    return report, fingerprint


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
