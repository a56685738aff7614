"""First voxels of the patches of a sliding window."""

from math import ceil

STEP = 0.5
"""Distance of neighbouring patches, as a fraction of the patch edge."""
FAST_STEP = 0.75
"""The same for a faster prediction."""


def window_starts(size: int, patch: int, step: float = STEP) -> list[int]:
    """First voxels of the patches along one axis: evenly spread from border to border, at most ``step`` apart."""
    if size <= patch:
        return [0]
    count = ceil((size - patch) / (patch * step)) + 1
    return [round((size - patch) / (count - 1) * index) for index in range(count)]
