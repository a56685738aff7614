"""Cleaning of label maps by the components of one label: keep the largest, or drop the small ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Step(Protocol):
    """One step: ``action`` is largest_component or remove_small, the volume in mm3 (voxels without millimetres)."""

    @property
    def label(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def smallest_voxels_mm3(self) -> float: ...


@dataclass(frozen=True)
class CleaningStep:
    """A :class:`Step` as plain values."""

    label: str
    action: str
    smallest_voxels_mm3: float = 0.0


def clean(
    labels: NDArray[Any], steps: Sequence[Step], indices: dict[str, int], voxel_mm3: float | None
) -> NDArray[Any]:
    """Apply cleaning steps to label indices (i, j, k); ``indices`` gives the index of each label's name."""
    for step in steps:
        labels = clean_one(labels, step, indices[step.label], voxel_mm3)
    return labels


def clean_one(labels: NDArray[Any], step: Step, index: int, voxel_mm3: float | None) -> NDArray[Any]:
    """One cleaning step; components touch by face, edge or corner; ties keep the first in the array's order."""
    from scipy.ndimage import label

    components, count = label(labels == index, np.ones((3, 3, 3)))
    if count < 2 and step.action == "largest_component":
        return labels
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    if step.action == "largest_component":
        kept = np.arange(len(sizes)) == sizes.argmax()
    else:
        kept = sizes * (voxel_mm3 or 1.0) >= step.smallest_voxels_mm3
    kept[0] = True
    return np.where(kept[components], labels, labels.dtype.type(0))
