"""The choice of a training patch, case and position: a pure function of (seed, step, sample).

Nothing depends on the order in which workers answer, so a run with four workers, a run with none and a resumed run
see the same patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medmamba.preprocessing.store import CaseReader

FOREGROUND_FRACTION = 0.33
"""Fraction of a batch whose patches must contain foreground (nnU-Net v2)."""


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
    cases: Sequence[CaseReader],
    size: tuple[int, ...],
    *,
    on_foreground: bool,
    by_lesion: bool = False,
) -> tuple[CaseReader, tuple[int, ...]]:
    """Draw a case uniformly and a patch of ``size`` in it: its first voxel on the plan's grid, which may lie outside.

    On foreground: label uniform among those present, voxel uniform, patch centred on it and moved only as far as needed
    to stay near the volume. A volume smaller than the patch is centred with a free margin. ``by_lesion`` draws a
    connected component before a voxel, so that a lesion of ten voxels is seen as often as one of ten thousand.

    In a case with ignored voxels every patch is centred on one that is not, so that there is something to learn.
    """
    case = cases[int(rng.integers(len(cases)))]
    lowest, highest = [], []
    for edge, extent in zip(size, case.shape, strict=True):
        missing = max(edge - extent, 0)
        lowest.append(-(missing // 2))
        highest.append(extent - edge + missing // 2 + missing % 2)
    present = [label for label, voxels in sorted(case.locations.items()) if len(voxels)] if on_foreground else []
    if present:
        label = present[int(rng.integers(len(present)))]
        voxels = case.locations[label]
        if by_lesion:
            component = case.lesions[label]
            voxels = voxels[component == rng.choice(np.unique(component))]
    elif case.annotated_voxels is not None:
        voxels = case.annotated_voxels
    else:
        return case, tuple(int(rng.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True))
    start = voxels[int(rng.integers(len(voxels)))] - np.array(size) // 2
    return case, tuple(int(first) for first in np.clip(start, lowest, highest))
