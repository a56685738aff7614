"""The voxel side of the fingerprint: facts and sampled foreground intensities, case by case and put together."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medmamba.datasets import CaseSpec, DatasetReport, DatasetSpec, LoadedCase, check_dataset
from medmamba.geometry import Grid
from medmamba.geometry.trail import Reorient, SpatialTrail
from medmamba.images import ReadOptions
from medmamba.plans.fingerprint import CaseStats, Fingerprint, build_fingerprint, draw_foreground, samples_per_case
from medmamba.preprocessing.case import bounding_box
from medmamba.preprocessing.labels import index_in, mean_voxel


def measure_dataset(
    spec: DatasetSpec,
    options: ReadOptions | None = None,
    *,
    workers: int | None = None,
    on_case: Callable[[int, int], None] | None = None,
) -> tuple[DatasetReport, Fingerprint]:
    """Check every training case and measure it while it is in memory.

    Arguments as of :func:`medmamba.datasets.check_dataset`. Raises InputErrors with all that is wrong.
    """
    samples = samples_per_case(len(spec.cases))

    def measure(case: CaseSpec, loaded: LoadedCase) -> "MeasuredCase | None":
        image, truth = loaded.image, loaded.labels
        if truth is None:
            return None
        return measure_case(
            case, image.array, truth.array, image.grid, spec.labels, samples=samples, counts=truth.counts()
        )

    report = check_dataset(spec, options, visit=measure, workers=workers, on_case=on_case)
    measured = [(*case.visited, case.image_sha256) for case in report.cases if case.visited is not None]
    fingerprint = build_fingerprint(
        spec.name,
        spec.channels,
        spec.labels,
        [stats.model_copy(update={"image_hash": digest}) for stats, _, digest in measured],
        [np.concatenate([drawn[channel] for _, drawn, _ in measured]) for channel in range(len(spec.channels))],
    )
    return report, fingerprint


MeasuredCase = tuple[CaseStats, NDArray[np.float32]]
"""Facts of one case and (channels, samples) of its foreground intensities."""


def measure_case(
    case: CaseSpec,
    image: NDArray[np.generic],
    labels: NDArray[np.integer],
    grid: Grid,
    label_values: Mapping[str, int],
    *,
    samples: int,
    counts: Mapping[int, int],
) -> MeasuredCase:
    """Measure an image (C, i, j, k) and its label map (i, j, k); draw ``samples`` foreground voxels per channel.

    Foreground are the voxels of a label: neither background nor ignored. ``counts`` are the voxels per value.
    """
    trail = SpatialTrail(grid).then(Reorient.to_canonical(grid))
    array, truth = trail.apply(image), trail.apply(labels[None])[0]
    start, stop = bounding_box(array)
    structures = {name: value for name, value in label_values.items() if value != 0 and counts.get(value)}
    indices = index_in(np.array([0, *structures.values()]), truth)  # 1, 2, ... in the order of the structures
    drawn = draw_foreground(array[:, indices > 0].astype(np.float32, copy=False), samples, case_id=case.case_id)
    found = locations(indices, list(structures), trail.grid.affine)
    stats = CaseStats(
        case_id=case.case_id,
        shape=trail.grid.shape,
        spacing_mm=trail.grid.spacing_mm,
        orientation=grid.orientation,
        shape_after_crop=(stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]),
        label_voxels={name: counts.get(value, 0) for name, value in label_values.items()},
        label_components={name: count for name, (count, _) in found.items()},
        label_centre_mm={name: centre for name, (_, centre) in found.items() if centre is not None},
        annotated_labels=None if case.annotated is None else list(case.annotated),
    )
    return stats, drawn


def locations(
    indices: NDArray[np.integer], names: Sequence[str], affine: NDArray[np.float64] | None
) -> dict[str, tuple[int, tuple[float, float, float] | None]]:
    """Number of connected components (corners touch) of each structure of a map (i, j, k) of indices 1, 2, ..., and
    its centre of mass in the world; absent structures are omitted.

    ``affine`` maps voxels to RAS+ millimetres; without it (None) structures have no centre.
    """
    from scipy import ndimage

    found = {}
    boxes = ndimage.find_objects(indices, len(names)) if names else []
    for index, (name, where) in enumerate(zip(names, boxes, strict=True), start=1):
        if where is None:
            continue
        inside = indices[where]
        _, components = ndimage.label(inside == index, structure=np.ones((3, 3, 3)))
        centre = None
        if affine is not None:
            voxel = mean_voxel(inside, index) + [part.start for part in where]
            x, y, z = (affine[:3, :3] @ voxel + affine[:3, 3]).tolist()
            centre = (x, y, z)
        found[name] = int(components), centre
    return found
