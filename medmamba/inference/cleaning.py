"""Cleaning of label maps: of one label, only the largest connected component is kept, or small ones are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmamba.models.cleaning_step import CleaningStep
from medmamba.preprocessing.case import bounding_box


def clean(
    labels: NDArray[Any], steps: Sequence[CleaningStep], indices: dict[str, int], voxel_mm3: float | None
) -> NDArray[Any]:
    """Apply cleaning steps to label indices (i, j, k); ``indices`` gives the index of each label's name."""
    for step in steps:
        labels = clean_one(labels, step, indices[step.label], voxel_mm3)
    return labels


def clean_one(labels: NDArray[Any], step: CleaningStep, index: int, voxel_mm3: float | None) -> NDArray[Any]:
    """One cleaning step; components touch by face, edge or corner; ties keep the first in the array's order."""
    from scipy.ndimage import label

    here = labels == index
    if not here.any():
        return labels
    box = tuple(slice(first, end) for first, end in zip(*bounding_box(here[None]), strict=True))
    components, count = label(here[box], np.ones((3, 3, 3)))
    if count < 2 and step.action == "largest_component":
        return labels
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    if step.action == "largest_component":
        kept = np.arange(len(sizes)) == sizes.argmax()
    else:
        kept = sizes * (voxel_mm3 or 1.0) >= step.smallest_voxels_mm3
    kept[0] = True
    cleaned = labels.copy(order="K")
    for plane, found in zip(cleaned[box], components, strict=True):  # numpy looks up with eight bytes an index
        plane[~kept[found]] = 0
    return cleaned
