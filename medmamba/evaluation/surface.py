"""Distances between the surfaces of two masks: the percentile of the Hausdorff distance, and the surface Dice.

Definitions of Nikolov et al. 2021, arXiv:1809.04430: surfaces run between voxel centres, every piece counts with its
area, and the distance of a piece is that to the nearest piece of the other surface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmamba.evaluation.surfels import block_codes, surfel_sizes


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces, in both directions, each sorted, with the area of the piece they belong to.

    An empty mask has no pieces; distances to it are infinite. The unit is that of the spacing.
    """

    from_truth: NDArray[np.float64]
    truth_area: NDArray[np.float64]
    from_prediction: NDArray[np.float64]
    prediction_area: NDArray[np.float64]

    def hausdorff(self, percent: float = 95.0) -> float:
        """The distance that ``percent`` of either surface does not exceed, the larger of both directions.

        nan if both masks are empty, inf if one is.
        """
        if not self.from_truth.size and not self.from_prediction.size:
            return math.nan
        return max(
            _percentile(self.from_truth, self.truth_area, percent),
            _percentile(self.from_prediction, self.prediction_area, percent),
        )

    def surface_dice(self, tolerance: float) -> float:
        """Fraction of both surfaces that lies within ``tolerance`` of the other (NSD); nan if both masks are empty."""
        total = self.truth_area.sum() + self.prediction_area.sum()
        near = self.truth_area[self.from_truth <= tolerance].sum()
        near += self.prediction_area[self.from_prediction <= tolerance].sum()
        return float(near / total) if total else math.nan

    def mean(self) -> float:
        """Mean distance over both surfaces, weighted by area; nan if both masks are empty, inf if one is."""
        total = self.truth_area.sum() + self.prediction_area.sum()
        if not total:
            return math.nan
        ways = ((self.from_truth, self.truth_area), (self.from_prediction, self.prediction_area))
        return float(sum((distances * area).sum() for distances, area in ways if area.size) / total)


def surface_distances(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Sequence[float]
) -> SurfaceDistances:
    """The distances between the surfaces of two masks of one shape, with 2 or 3 axes.

    Time and memory are those of the whole masks: crop them to the structure first, as ``MaskPair.of_masks`` does.
    """
    if truth.shape != prediction.shape or truth.ndim != len(spacing):
        raise ValueError(f"masks of shape {truth.shape} and {prediction.shape} with {len(spacing)} spacings")
    sizes = surfel_sizes(spacing)
    codes = [block_codes(mask) for mask in (truth, prediction)]
    borders = [(code != 0) & (code != len(sizes) - 1) for code in codes]
    ways = []
    for this, other, code in ((borders[0], borders[1], codes[0]), (borders[1], borders[0], codes[1])):
        distances, area = _distances_to(other, spacing)[this], sizes[code[this]]
        order = np.argsort(distances, kind="stable")
        ways.append((distances[order], area[order]))
    return SurfaceDistances(*ways[0], *ways[1])


def _distances_to(border: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    from scipy.ndimage import distance_transform_edt

    if not border.any():
        return np.full(border.shape, math.inf)
    return distance_transform_edt(~border, sampling=spacing)


def _percentile(distances: NDArray[np.float64], area: NDArray[np.float64], percent: float) -> float:
    if not distances.size:
        return math.inf
    fraction = np.cumsum(area) / area.sum()
    reached = percent / 100 - 1e-9  # a piece that ends at the percentile counts, however the sum of areas was rounded
    return float(distances[min(int(np.searchsorted(fraction, reached)), len(distances) - 1)])
