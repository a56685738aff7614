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


def body_of(image: NDArray[np.generic], schemes: Sequence[Normalization]) -> Inside | None:
    """The body in an image (C, I, J, K), bool (I, J, K), or None where no scheme asks for it.

    Voxels where any channel is not 0, and those that they enclose: a cavity without signal belongs to the body.
    Source: nnU-Net v2, ``preprocessing/cropping/cropping.py``.
    """
    if not any(scheme.use_mask for scheme in schemes):
        return None
    from scipy.ndimage import binary_fill_holes  # 14 MiB that a prediction without such a channel does without

    body = np.zeros(image.shape[1:], bool)
    for channel in image:
        body |= channel != 0
    filled: Inside = binary_fill_holes(body)
    return filled


def normalized_slabs(
    image: NDArray[np.generic], schemes: Sequence[Normalization], body: Inside | None
) -> Iterator[Slab]:
    """Slabs (C, some planes, J, K) of an image (C, I, J, K) on the plan's intensity scale, in order, each a new array.

    Where a scheme asks for it, statistics come from the ``body`` alone (:func:`body_of`), and all others become zero.
    Source: nnU-Net v2, ``preprocessing/normalization/default_normalization_schemes.py``.
    """
    scales = [_scale(image, number, scheme, body) for number, scheme in enumerate(schemes)]
    for slab, inside in _slabs(image, slice(None), body):
        for channel, scale in zip(slab, scales, strict=True):
            scale(channel, inside)
        yield slab


def _slabs(image: NDArray[np.generic], channels: slice, body: Inside | None) -> Iterator[tuple[Slab, Inside | None]]:
    """Contiguous copies of some channels of a few planes, and which of their voxels lie inside the body (None: all)."""
    for start in range(0, image.shape[1], PLANES):
        planes = slice(start, start + PLANES)
        slab = np.array(image[channels, planes], dtype=np.float32, order="C")
        yield slab, None if body is None else body[planes]


def _scale(
    image: NDArray[np.generic], number: int, scheme: Normalization, body: Inside | None
) -> Callable[[Slab, Inside | None], None]:
    """What brings planes of channel ``number`` onto the scale, in place."""

    def values() -> Iterator[NDArray[np.float64]]:
        for slab, inside in _slabs(image, slice(number, number + 1), body if masked else None):
            yield (slab[0] if inside is None else slab[0][inside]).astype(np.float64)

    masked = scheme.use_mask and scheme.scheme == "zscore" and body is not None and bool(body.any())
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
) -> Callable[[Slab, Inside | None], None]:
    """(values - zero) / one."""
    zero32, one32 = np.float32(zero), np.float32(max(one, MIN_STD))

    def scale(plane: Slab, inside: Inside | None) -> None:
        if clip is not None:
            np.clip(plane, *clip, out=plane)
        plane -= zero32
        plane /= one32
        if masked and inside is not None:
            plane[~inside] = 0

    return scale
