"""Post-processing of label maps: keep only the largest connected component of a label, or remove small ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CleaningStep:
    """One step on the connected components of one label; ``gain`` is the mean Dice gained in cross-validation.

    remove_small: components below ``smallest_voxels_mm3`` become background; in voxels for images without millimetres.
    Raises ValueError for a negative volume.
    """

    label: str
    action: Literal["largest_component", "remove_small"]
    smallest_voxels_mm3: float = 0.0
    gain: float = 0.0

    def __post_init__(self) -> None:
        if self.smallest_voxels_mm3 < 0:
            raise ValueError("smallest_voxels_mm3 must be at least 0")


def clean(
    labels: NDArray[Any], steps: Sequence[CleaningStep], names: Sequence[str], voxel_mm3: float | None
) -> NDArray[Any]:
    """Apply cleaning steps to label indices (i, j, k); ``names`` are the labels of the indices 1, 2, ..."""
    for step in steps:
        labels = clean_one(labels, step, 1 + list(names).index(step.label), voxel_mm3)
    return labels


def clean_one(labels: NDArray[Any], step: CleaningStep, index: int, voxel_mm3: float | None) -> NDArray[Any]:
    """One cleaning step; of components of the same size the first in array order is the largest."""
    from scipy.ndimage import find_objects

    here = labels == index
    boxes = find_objects(here.view(np.uint8))
    if not boxes:
        return labels
    components, sizes = connected_components(here[boxes[0]])
    if step.action == "largest_component":
        kept = np.arange(len(sizes)) == sizes.argmax()
    else:
        kept = sizes * (voxel_mm3 or 1.0) >= step.smallest_voxels_mm3
    kept[0] = True
    if kept.all():
        return labels
    cleaned = labels.copy(order="K")
    for plane, found in zip(cleaned[boxes[0]], components, strict=True):  # numpy looks up with eight bytes an index
        plane[~kept[found]] = 0
    return cleaned


def connected_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Component number of each voxel (neighbours share face, edge or corner; 0 is outside), and component sizes."""
    from scipy.ndimage import label

    components, _ = label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return components, sizes
