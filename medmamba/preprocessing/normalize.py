"""Intensity normalisation, one scheme per channel, as nnU-Net's plans name them.

An image is normalised a few planes at a time, so that no second copy of it is needed at its own spacing. Statistics are
sums over planes in the order of the plan's axes: the same image stored in another order has the same ones, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medmamba.plans.schema import Normalization

MIN_STD = 1e-8
"""Smallest divisor of a z-score; a constant image becomes zero instead of infinite."""
PLANES = 16
"""Planes of a slab: float32 voxels of one cache line, where the first axis is the fastest in memory."""

Slab = NDArray[np.float32]
Inside = NDArray[np.bool_]


def normalized_slabs(image: NDArray[np.generic], schemes: Sequence[Normalization]) -> Iterator[Slab]:
    """Slabs (C, some planes, J, K) of an image (C, I, J, K) on the plan's intensity scale, in order, each a new array.

    Where a scheme asks for it, statistics come from the body alone (voxels where any channel is not 0), and all others
    become zero. Source: nnU-Net v2, ``preprocessing/normalization/default_normalization_schemes.py``.
    """
    scales = [_scale(image, number, scheme) for number, scheme in enumerate(schemes)]
    for slab, inside in _slabs(image, slice(None), any(scheme.use_mask for scheme in schemes)):
        for channel, scale in zip(slab, scales, strict=True):
            scale(channel, inside)
        yield slab


def _slabs(image: NDArray[np.generic], channels: slice, masked: bool) -> Iterator[tuple[Slab, Inside]]:
    """Contiguous copies of some channels of a few planes, and which of their voxels lie inside the body."""
    for start in range(0, image.shape[1], PLANES):
        whole = image[:, start : start + PLANES]
        slab = np.array(whole[channels], dtype=np.float32, order="C")
        yield slab, (whole != 0).any(axis=0) if masked else np.ones(slab.shape[1:], bool)


def _scale(image: NDArray[np.generic], number: int, scheme: Normalization) -> Callable[[Slab, Inside], None]:
    """What brings planes of channel ``number`` onto the scale, in place."""

    def values() -> Iterator[NDArray[np.float64]]:
        for slab, inside in _slabs(image, slice(number, number + 1), masked):
            yield (slab[0][inside] if masked else slab[0]).astype(np.float64)

    masked = scheme.use_mask and scheme.scheme == "zscore" and bool(image.any())
    match scheme.scheme:
        case "zscore":
            count = sum(part.size for part in values())
            # float64 statistics: float32 sums lose digits on images with values near 1e6.
            mean = sum(float(part.sum()) for part in values()) / count
            variance = sum(float(np.square(part - mean).sum()) for part in values()) / count
            return _shifted(mean, math.sqrt(variance), masked=masked)
        case "ct":
            low, high, centre, std = scheme.percentile_00_5, scheme.percentile_99_5, scheme.mean, scheme.std
            if low is None or high is None or centre is None or std is None:
                raise ValueError("CT normalisation needs the dataset's percentiles, mean and std in the plan")
            return _shifted(centre, std, clip=(low, high))
        case "rescale_to_0_1":
            low, high = float(image[number].min()), float(image[number].max())
            return _shifted(low, high - low)
        case "rgb_to_0_1":
            return _shifted(0.0, 255.0)
        case "none":
            return lambda plane, inside: None
    raise ValueError(f"unknown normalisation scheme {scheme.scheme!r}")


def _shifted(
    zero: float, one: float, *, clip: tuple[float, float] | None = None, masked: bool = False
) -> Callable[[Slab, Inside], None]:
    """(values - zero) / one."""
    zero32, one32 = np.float32(zero), np.float32(max(one, MIN_STD))

    def scale(plane: Slab, inside: Inside) -> None:
        if clip is not None:
            np.clip(plane, *clip, out=plane)
        plane -= zero32
        plane /= one32
        if masked:
            plane[~inside] = 0

    return scale
