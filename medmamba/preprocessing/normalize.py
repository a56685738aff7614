"""Intensity normalisation of an image, one function per name of plans/normalizers.py.

That table says which channels ask for which; the functions are in :data:`FUNCTIONS`. CT is clipped in :func:`ct`.

An image is normalised a few planes at a time, so that no second copy of it is needed at its own spacing. Statistics are
sums over planes in the order of the plan's axes: the same image stored in another order has the same ones, to the bit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmamba.plans.normalizers import NORMALIZERS
from medmamba.plans.schema import Normalization

MIN_STD = 1e-8
"""Smallest divisor of a z-score; a constant image becomes zero instead of infinite."""
PLANES = 16
"""Planes of a slab: float32 voxels of one cache line, where the first axis is the fastest in memory."""

Slab = NDArray[np.float32]
Inside = NDArray[np.bool_]


def nonzero_mask_of(image: NDArray[np.generic], schemes: Sequence[Normalization]) -> Inside | None:
    """The nonzero mask of an image (C, I, J, K), bool (I, J, K), or None where no scheme asks for it.

    Voxels where any channel is not 0, and those that they enclose: a cavity without signal belongs to the nonzero mask.
    Source: nnU-Net v2, ``preprocessing/cropping/cropping.py``.
    """
    if not any(scheme.use_mask for scheme in schemes):
        return None
    from scipy.ndimage import binary_fill_holes  # 14 MiB that a prediction without such a channel does without

    nonzero_mask = np.zeros(image.shape[1:], bool)
    for channel in image:
        nonzero_mask |= channel != 0
    filled: Inside = binary_fill_holes(nonzero_mask)
    return filled


def normalized_slabs(
    image: NDArray[np.generic], schemes: Sequence[Normalization], nonzero_mask: Inside | None
) -> Iterator[Slab]:
    """Slabs (C, some planes, J, K) of an image (C, I, J, K) on the plan's intensity scale, in order, each a new array.

    Where a scheme asks for it, statistics come from the ``nonzero_mask`` alone, and all other voxels become zero.
    Source: nnU-Net v2, ``preprocessing/normalization/default_normalization_schemes.py``.
    """
    scales = []
    marked = nonzero_mask is not None and bool(nonzero_mask.any())
    for number, scheme in enumerate(schemes):
        masked = marked and scheme.use_mask and NORMALIZERS[scheme.scheme].uses_mask
        scales.append(FUNCTIONS[scheme.scheme](Channel(image, number, nonzero_mask if masked else None), scheme))
    for slab, inside in _slabs(image, slice(None), nonzero_mask):
        for channel, scale in zip(slab, scales, strict=True):
            scale(channel, inside)
        yield slab


def _slabs(
    image: NDArray[np.generic], channels: slice, nonzero_mask: Inside | None
) -> Iterator[tuple[Slab, Inside | None]]:
    """Contiguous copies of some channels of a few planes, and their part of the nonzero mask (None: all voxels)."""
    for start in range(0, image.shape[1], PLANES):
        planes = slice(start, start + PLANES)
        slab = np.array(image[channels, planes], dtype=np.float32, order="C")
        yield slab, None if nonzero_mask is None else nonzero_mask[planes]


@dataclass(frozen=True)
class Channel:
    """One channel of an image, read a few planes at a time, inside the nonzero mask only (None: everywhere)."""

    image: NDArray[np.generic]
    number: int
    nonzero_mask: Inside | None

    def values(self) -> Iterator[NDArray[np.float64]]:
        """The values that statistics are taken from, in parts."""
        for slab, inside in _slabs(self.image, slice(self.number, self.number + 1), self.nonzero_mask):
            yield (slab[0] if inside is None else slab[0][inside]).astype(np.float64)


Scale = Callable[[Slab, Inside | None], None]
"""Brings some planes of a channel onto the plan's scale, in place; given their part of the nonzero mask."""


def zscore(channel: Channel, settings: Normalization) -> Scale:
    """Mean 0 and standard deviation 1 of this image, inside the nonzero mask where the plan says so."""
    count = sum(part.size for part in channel.values())
    # float64 statistics: float32 sums lose digits on images with values near 1e6.
    mean = sum(float(part.sum()) for part in channel.values()) / count
    variance = sum(float(np.square(part - mean).sum()) for part in channel.values()) / count
    return shifted(mean, math.sqrt(variance), masked=channel.nonzero_mask is not None)


def ct(channel: Channel, settings: Normalization) -> Scale:
    """Clipped to the percentiles of the training foreground, then its mean becomes 0 and its standard deviation 1."""
    low, high, centre, std = settings.percentile_00_5, settings.percentile_99_5, settings.mean, settings.std
    if low is None or high is None or centre is None or std is None:
        raise ValueError("CT normalisation needs the dataset's percentiles, mean and std in the plan")
    return shifted(centre, std, clip=(low, high))


def rescale_to_0_1(channel: Channel, settings: Normalization) -> Scale:
    """Minimum and maximum of this image become 0 and 1."""
    low, high = (float(edge(channel.image[channel.number])) for edge in (np.min, np.max))
    return shifted(low, high - low)


def rgb_to_0_1(channel: Channel, settings: Normalization) -> Scale:
    """0 to 255 becomes 0 to 1."""
    return shifted(0.0, 255.0)


def unchanged(channel: Channel, settings: Normalization) -> Scale:
    """The values as stored."""
    return lambda plane, inside: None


FUNCTIONS: dict[str, Callable[[Channel, Normalization], Scale]] = {
    "zscore": zscore,
    "ct": ct,
    "rescale_to_0_1": rescale_to_0_1,
    "rgb_to_0_1": rgb_to_0_1,
    "none": unchanged,
}
"""The function of each name in plans/normalizers.py."""


def shifted(zero: float, one: float, *, clip: tuple[float, float] | None = None, masked: bool = False) -> Scale:
    """(values - zero) / one, of values clipped to ``clip``; ``masked``: 0 outside the nonzero mask."""
    zero32, one32 = np.float32(zero), np.float32(max(one, MIN_STD))

    def scale(plane: Slab, inside: Inside | None) -> None:
        if clip is not None:
            np.clip(plane, *clip, out=plane)
        plane -= zero32
        plane /= one32
        if masked and inside is not None:
            plane[~inside] = 0

    return scale
