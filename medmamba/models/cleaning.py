"""Post-processing of label maps: keep only the largest connected component of a label, or remove small ones."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CleaningStep:
    """One step on the connected components of one label; ``gain`` is the mean Dice gained in cross-validation.

    remove_small: components below ``smallest_voxels_mm3`` become background; in voxels for images without millimetres.
    ``with_labels`` are further labels that count as one with the first, as those of a region do.
    Raises ValueError for a negative volume.
    """

    label: str
    action: Literal["largest_component", "remove_small"]
    smallest_voxels_mm3: float = 0.0
    gain: float = 0.0
    with_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.smallest_voxels_mm3 < 0:
            raise ValueError("smallest_voxels_mm3 must be at least 0")

    def as_json(self) -> dict[str, Any]:
        """Without an empty ``with_labels``, as earlier versions wrote it, so that their files keep their hash."""
        return {name: value for name, value in asdict(self).items() if name != "with_labels" or value}

    def sentence(self) -> str:
        """For people, as "left + right: largest component"."""
        return f"{' + '.join((self.label, *self.with_labels))}: {self.action.replace('_', ' ')}"


def clean(
    labels: NDArray[Any], steps: Sequence[CleaningStep], names: Sequence[str], voxel_mm3: float | None
) -> NDArray[Any]:
    """Apply cleaning steps to label indices (i, j, k); ``names`` are the labels of the indices 1, 2, ..."""
    for step in steps:
        indices = [1 + list(names).index(name) for name in (step.label, *step.with_labels)]
        labels = clean_one(labels, step, indices, voxel_mm3)
    return labels


def clean_one(
    labels: NDArray[Any], step: CleaningStep, indices: Collection[int], voxel_mm3: float | None
) -> NDArray[Any]:
    """One cleaning step on labels that count as one; all components of the largest size stay, as in nnU-Net."""
    from scipy.ndimage import find_objects

    here = labels == next(iter(indices)) if len(indices) == 1 else np.isin(labels, list(indices))
    boxes = find_objects(here.view(np.uint8))
    if not boxes:
        return labels
    components, sizes = connected_components(here[boxes[0]])
    if step.action == "largest_component":
        kept = sizes == sizes.max()
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
