"""One step of post-processing: which components of a label are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CleaningStep:
    """One step on the connected components of one label.

    Attributes:
        label: its name.
        smallest_voxels_mm3: remove_small: components below this volume become background; voxels for images without
            millimetres.
        gain: mean Dice gained in cross-validation.

    Raises ValueError for a negative volume.
    """

    label: str
    action: Literal["largest_component", "remove_small"]
    smallest_voxels_mm3: float = 0.0
    gain: float = 0.0

    def __post_init__(self) -> None:
        if self.smallest_voxels_mm3 < 0:
            raise ValueError("smallest_voxels_mm3 must be at least 0")
