"""The choice of a training patch, case and position: a pure function of (seed, step, sample).

Nothing depends on the order in which workers answer, so a run with four workers, a run with none and a resumed run
see the same patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOREGROUND_FRACTION = 0.33
"""Fraction of a batch whose patches must contain foreground (nnU-Net v2)."""


@dataclass(frozen=True)
class PatchChoice:
    """A patch: which case, and its first voxel on the plan's grid (may lie outside)."""

    case_index: int
    start: tuple[int, ...]


def sample_rng(seed: int, step: int, sample: int) -> np.random.Generator:
    """The random stream of one sample of one batch."""
    return np.random.default_rng([seed, step, sample])


def must_show_foreground(sample: int, batch_size: int) -> bool:
    """Whether this sample of the batch is forced onto foreground: the last third of the batch.

    Source: nnU-Net v2, ``dataloading/data_loader.py`` (rounding included: 1 of 2, 1 of 3, 1 of 4, 2 of 5).
    """
    return not sample < round(batch_size * (1 - FOREGROUND_FRACTION))


def choose_patch(
    rng: np.random.Generator,
    shapes: Sequence[tuple[int, ...]],
    foreground: Sequence[Mapping[int, NDArray[np.integer]]],
    patch_size: tuple[int, ...],
    *,
    on_foreground: bool,
    lesions: Sequence[Mapping[int, NDArray[np.integer]]] | None = None,
    annotated: Sequence[NDArray[np.integer] | None] | None = None,
) -> PatchChoice:
    """Draw a case uniformly and a patch in it.

    ``shapes`` are the cases' sizes on the plan's grid; ``foreground[i]`` maps each label of case i to (n, dims) voxel
    coordinates. On foreground: label uniform among those present, voxel uniform, patch centred on it and moved only
    as far as needed to stay near the volume. A volume smaller than the patch is centred with a free margin.

    ``lesions`` numbers the connected component of every foreground voxel; then a component is drawn before a voxel, so
    that a lesion of ten voxels is seen as often as one of ten thousand. ``annotated[i]`` are the voxels of case i that
    are not ignored, where some are; then every patch is centred on one, so that there is something to learn.
    """
    case = int(rng.integers(len(shapes)))
    shape = shapes[case]
    lowest, highest = [], []
    for size, extent in zip(patch_size, shape, strict=True):
        missing = max(size - extent, 0)
        lowest.append(-(missing // 2))
        highest.append(extent - size + missing // 2 + missing % 2)
    present = [label for label, voxels in sorted(foreground[case].items()) if len(voxels)]
    if on_foreground and present:
        label = present[int(rng.integers(len(present)))]
        voxels = foreground[case][label]
        if lesions is not None:
            component = lesions[case][label]
            drawn = rng.choice(np.unique(component))
            voxels = voxels[component == drawn]
        centre: NDArray[np.integer] | None = voxels[int(rng.integers(len(voxels)))]
    elif annotated is not None and (known := annotated[case]) is not None:
        centre = known[int(rng.integers(len(known)))]
    else:
        centre = None
    if centre is not None:
        start = [int(c) - size // 2 for c, size in zip(centre, patch_size, strict=True)]
        start = [min(max(s, low), high) for s, low, high in zip(start, lowest, highest, strict=True)]
    else:
        start = [int(rng.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    return PatchChoice(case, tuple(start))
