"""Distances between the surfaces of two masks: the percentile of the Hausdorff distance, and the surface Dice.

Definitions of Nikolov et al. 2021, arXiv:1809.04430: surfaces run between voxel centres, as in marching cubes,
surface elements are weighted by area, and the distance of an element is that to the nearest one of the other surface.

Which of the eight corners of a 2x2x2 block of voxels lie inside the mask is the block's code, 0 to 255, with corner
(0, 0, 0) as bit 7 and (1, 1, 1) as bit 0; of 2x2 pixels the code has 4 bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

_TRIANGLES = {
    "111": "01 02 04 08 10 20 40 7f 80 bf df ef f7 fb fd fe",
    "004 004": "55 aa",
    "022 022": "11 22 44 77 88 bb dd ee",
    "040 040": "33 cc",
    "111 111": "06 09 12 14 18 21 24 28 41 42 48 60 6f 7b 7d 7e 81 82 84 90 9f b7 bd be d7 db de e7 eb ed f6 f9",
    "202 202": "05 0a 50 5f a0 af f5 fa",
    "220 220": "03 0c 30 3f c0 cf f3 fc",
    "400 400": "0f f0",
    "004 111 222": "15 2a 45 51 54 57 5d 75 8a a2 a8 ab ae ba d5 ea",
    "022 022 111": "19 26 46 62 64 67 6e 76 89 91 98 9b 9d b9 d9 e6",
    "040 111 222": "13 23 31 32 37 3b 4c 73 8c b3 c4 c8 cd ce dc ec",
    "111 111 111": "16 29 49 61 68 6b 6d 79 86 92 94 97 9e b6 d6 e9",
    "111 202 202": "1a 25 4a 52 58 5b 5e 7a 85 a1 a4 a7 ad b5 da e5",
    "111 220 220": "1c 2c 34 38 3d 3e 43 7c 83 bc c1 c2 c7 cb d3 e3",
    "111 222 400": "07 0b 0d 0e 1f 2f 4f 70 8f b0 d0 e0 f1 f2 f4 f8",
    "004 111 111 222": "56 59 65 6a 95 9a a6 a9",
    "022 022 022 022": "66 99",
    "022 111 202 333": "1b 27 4e 72 8d b1 d8 e4",
    "022 111 220 333": "1d 2e 47 74 8b b8 d1 e2",
    "040 111 111 222": "36 39 63 6c 93 9c c6 c9",
    "111 111 111 111": "69 96",
    "111 111 222 222": "17 2b 4d 71 8e b2 d4 e8",
    "111 111 222 400": "1e 2d 4b 78 87 b4 d2 e1",
    "111 202 220 333": "35 3a 53 5c a3 ac c5 ca",
    "202 202 202 202": "5a a5",
    "220 220 220 220": "3c c3",
}
"""Triangles by the codes of their blocks: a digit triple is a triangle's area vector on a unit grid in eighths, without
signs, which areas do not need. Source: google-deepmind/surface-distance (Apache-2.0); its 254 codes with surface fall
into these 26 kinds."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces in both directions, sorted, with the areas of their pieces, in the spacing's unit.

    An empty mask has no pieces; distances to it are infinite.
    """

    from_truth: NDArray[np.float64]
    truth_area: NDArray[np.float64]
    from_prediction: NDArray[np.float64]
    prediction_area: NDArray[np.float64]

    def hausdorff(self, percent: float = 95.0) -> float:
        """The distance that ``percent`` of either surface does not exceed; nan of two empty masks, inf of one."""
        if not self.from_truth.size and not self.from_prediction.size:
            return math.nan
        ways = ((self.from_truth, self.truth_area), (self.from_prediction, self.prediction_area))
        return max(_percentile(distances, area, percent) for distances, area in ways)

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
    """The distances between the surfaces of two masks of one shape (2 or 3 axes), best cropped to the structure."""
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


def surfel_sizes(spacing: Sequence[float]) -> NDArray[np.float64]:
    """Area (3 spacings) or length (2 spacings) of the surface in a block, by its code."""
    if len(spacing) == 2:
        i, j = spacing
        corner = np.hypot(i, j) / 2
        lengths = np.full(16, corner)  # one corner inside, or all but one
        lengths[[0, 15]] = 0
        lengths[[0b0011, 0b1100]] = j
        lengths[[0b0101, 0b1010]] = i
        lengths[[0b0110, 0b1001]] = 2 * corner
        return lengths
    i, j, k = spacing
    sides = np.array([j * k, i * k, i * j])
    areas = np.zeros(256)
    for triangles, codes in _TRIANGLES.items():
        vectors = np.array([[int(digit) / 8 for digit in triple] for triple in triangles.split()])
        areas[list(bytes.fromhex(codes))] = np.linalg.norm(vectors * sides, axis=1).sum()
    return areas


def block_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The code of each block of a mask of 2 or 3 axes; the result is one longer per axis, outside the mask is empty."""
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([edge + 1 for edge in mask.shape], np.uint8)
    bit = 1 << mask.ndim
    for corner in product((0, 1), repeat=mask.ndim):
        bit -= 1
        window = tuple(slice(first, first + edge + 1) for first, edge in zip(corner, mask.shape, strict=True))
        codes |= padded[window] << bit
    return codes
