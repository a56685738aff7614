"""Surface distances the slow way: every block, every pair of pieces; and the script that renews the golden file."""

from __future__ import annotations

import json
import math
import sys
from itertools import product
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "data" / "surface_distance" / "golden.json"
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.3, 5.0), (3.0, 0.5, 0.9), (1.0, 2.5), (0.8, 0.8)]
TOLERANCES = (0.4, 1.0, 2.5)


def masks_of(seed, shape):
    """Two smooth random masks that overlap in part; for some seeds one of them is empty."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    fields = [gaussian_filter(random.standard_normal(shape), 1.2) for _ in range(2)]
    second = 0.6 * fields[0] + 0.4 * fields[1]
    truth, prediction = fields[0] > np.quantile(fields[0], 0.8), second > np.quantile(second, 0.75)
    return (truth & False if seed % 10 == 8 else truth), (prediction & False if seed % 10 == 9 else prediction)


def slow_distances(truth, prediction, spacing, sizes):
    """Distances and sizes both ways by comparing every piece of one surface with every piece of the other."""
    pieces = []
    for mask in (truth, prediction):
        padded = np.pad(mask, 1)
        found = []
        for corner in product(*(range(edge + 1) for edge in mask.shape)):
            inside = [padded[tuple(np.add(corner, shift))] for shift in product((0, 1), repeat=mask.ndim)]
            if any(inside) and not all(inside):
                code = int("".join("1" if bit else "0" for bit in inside), 2)
                found.append((np.multiply(corner, spacing), sizes[code]))
        pieces.append(found)
    ways = []
    for this, other in (pieces, pieces[::-1]):
        nearest = [min((math.dist(place, there) for there, _ in other), default=math.inf) for place, _ in this]
        ways.append((nearest, [size for _, size in this]))
    return ways


def slow_hausdorff(ways, percent):
    """The smallest distance within which at least ``percent`` of a surface lies; the larger of both ways."""
    found = []
    for distances, sizes in ways:
        if not distances:
            found.append(math.inf)
            continue
        pieces = sorted(zip(distances, sizes, strict=True))
        shares = np.cumsum([size for _, size in pieces]) / sum(sizes)
        found.append(next(d for (d, _), share in zip(pieces, shares, strict=True) if share >= percent / 100 - 1e-12))
    return max(found)


def slow_surface_dice(ways, tolerance):
    near = sum(size for way in ways for distance, size in zip(*way, strict=True) if distance <= tolerance)
    return near / sum(size for _, sizes in ways for size in sizes)


def _renew(package):
    sys.path.insert(0, package)
    import surface_distance
    from surface_distance import lookup_tables

    def plain(value):
        return "inf" if math.isinf(value) else "nan" if math.isnan(value) else float(value)

    areas = []
    for spacing in SPACINGS:
        make = "surface_area" if len(spacing) == 3 else "contour_length"
        table = getattr(lookup_tables, f"create_table_neighbour_code_to_{make}")(spacing)
        areas.append({"spacing": spacing, "sizes": [float(size) for size in table]})
    cases = []
    for seed in range(30):
        spacing = SPACINGS[seed % len(SPACINGS)]
        shape = [(9, 12, 7), (1, 14, 11), (16, 5, 8)][seed % 3][: len(spacing)]
        shape = tuple(max(edge, 6) for edge in shape) if len(spacing) == 2 else shape
        truth, prediction = masks_of(seed, shape)
        found = surface_distance.compute_surface_distances(truth, prediction, spacing)
        mean = surface_distance.compute_average_surface_distance(found)
        cases.append(
            {
                "seed": seed,
                "shape": shape,
                "spacing": spacing,
                "hd": {str(p): plain(surface_distance.compute_robust_hausdorff(found, p)) for p in (50, 95, 100)},
                "nsd": {
                    str(t): plain(surface_distance.compute_surface_dice_at_tolerance(found, t)) for t in TOLERANCES
                },
                "mean_both_ways": [plain(value) for value in mean],
            }
        )
    GOLDEN.write_text(json.dumps({"areas": areas, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    _renew(sys.argv[1])
