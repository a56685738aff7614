"""The chance of error of each voxel, in percent, one block of a plane after the other.

The doubt of a voxel is 1 minus its largest probability (of independent channels: the probability nearest to one half,
from its nearer end). `medmamba find-best` learns how often voxels of each doubt were wrong; without that the map shows
the doubt itself.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medmamba.models.output_channels import OutputChannels

EDGES = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
"""Limits of the groups of doubt in which errors are counted."""


class VoxelUncertainty:
    """``curve`` are pairs of doubt and chance of error, both ascending; none for the doubt itself."""

    def __init__(self, heads: OutputChannels, curve: Sequence[tuple[float, float]] = ()) -> None:
        self.heads = heads
        self.places, self.chances = np.array(curve, float).reshape(-1, 2).T
        self.percent: NDArray[np.uint8] | None = None

    def of_block(self, probabilities: torch.Tensor) -> NDArray[np.uint8]:
        """The percentages (...) of probabilities (C, ...)."""
        chance = doubt_of(probabilities, sigmoid=self.heads.sigmoid)
        if len(self.places):
            chance = np.interp(chance, self.places, self.chances)
        percent: NDArray[np.uint8] = np.rint(100 * chance).astype(np.uint8)
        return percent

    def of_volume(self, probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The percentages (i, j, k) of a whole volume (C, i, j, k), one plane after the other."""
        planes = (torch.from_numpy(np.ascontiguousarray(probabilities[:, i])) for i in range(probabilities.shape[1]))
        return np.stack([self.of_block(plane) for plane in planes])


def doubt_of(probabilities: torch.Tensor, *, sigmoid: bool) -> NDArray[np.float32]:
    """The doubt (...) of probabilities (C, ...)."""
    doubt = torch.minimum(probabilities, 1 - probabilities).amax(0) if sigmoid else 1 - probabilities.amax(0)
    found: NDArray[np.float32] = doubt.clamp_(0, 1).numpy()
    return found
