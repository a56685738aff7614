"""Stored numbers as checked values: finite float32 intensities, and whole-number labels.

Values are checked before they are cast, never after: 258 must not become 2, and 0.5 must not become 0. Work goes
slab by slab, so that scaling needs no second copy of the image in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.errors import InputError
from medmamba.images.gate import NonFinite
from medmamba.images.image import first_voxel, smallest_type

LABEL_TOLERANCE = 1e-3  # a stored label may differ from a whole number by this (scaled and float-stored files)
FLOAT32_MAX = float(np.finfo(np.float32).max)
_SLAB_VOXELS = 1 << 22

Stored = npt.NDArray[Any]


def intensities(
    stored: Stored, slope: float, inter: float, where: str, nonfinite: NonFinite = "error"
) -> tuple[npt.NDArray[np.float32], tuple[int, ...], int]:
    """Stored numbers (C, i, j, k) to float32 values.

    Returns:
        (array, constant channels, number of voxels that were not finite and are zero now).
    """
    result: npt.NDArray[np.float32] = stored
    if not _as_is(stored, slope, inter):
        result = np.moveaxis(np.empty((*stored.shape[1:], stored.shape[0]), dtype=np.float32, order="F"), -1, 0)
        for slab in _slabs(stored.shape):
            values = stored[slab]
            if (slope, inter) != (1.0, 0.0):
                values = _scaled(values, slope, inter)
            if values.dtype == np.float64:
                _fits_float32(values, where, slope, inter)
            with np.errstate(over="ignore"):  # beside infinite voxels, which are reported below
                result[slab] = values
    replaced = 0
    constant: list[int] = []
    for number, channel in enumerate(result):
        low, high = float(channel.min()), float(channel.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = ~np.isfinite(channel)
            count = int(np.count_nonzero(bad))
            if nonfinite == "error":
                raise InputError(
                    f"{where}: {count} voxels are NaN or infinite, the first at {first_voxel(bad)}"
                    f"{_of_channel(number, len(result))}. Mend the image, or read it with nonfinite=zero."
                )
            channel[bad] = 0
            replaced += count
            low, high = float(channel.min()), float(channel.max())
        if low == high:
            constant.append(number)
    return result, tuple(constant), replaced


def whole_numbers(stored: Stored, slope: float, inter: float, where: str) -> tuple[Stored, list[str]]:
    """Stored numbers (i, j, k) to labels in the smallest integer type, with a warning where values were rounded.

    Raises:
        InputError: a value is not finite, or farther than 1e-3 from a whole number.
    """
    if stored.dtype.kind in "iu" and (slope, inter) == (1.0, 0.0):
        return stored.astype(smallest_type(int(stored.min()), int(stored.max())), order="K", copy=False), []
    rounded = np.empty(stored.shape, dtype=np.int32, order="F")
    largest = 0.0
    for slab in _slabs((1, *stored.shape)):
        values = _scaled(stored[slab[1:]], slope, inter)
        whole = np.rint(values)
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(values - whole) <= LABEL_TOLERANCE) | (np.abs(whole) > 2**31 - 1)
        if wrong.any():
            index = first_voxel(wrong)
            voxel = (*index[:2], index[2] + int(slab[3].start))
            raise InputError(
                f"{where}: label value {values[index]:g} at voxel {voxel} is not a whole number "
                f"({_count_not_whole(stored, slope, inter)} voxels). Was a label map resampled with interpolation? "
                "Export it again."
            )
        largest = max(largest, float(np.abs(values - whole).max()))
        rounded[slab[1:]] = whole
    warnings = [f"{where}: label values were rounded to whole numbers, by up to {largest:.1g}."] if largest else []
    return rounded.astype(smallest_type(int(rounded.min()), int(rounded.max())), order="K"), warnings


def _as_is(stored: Stored, slope: float, inter: float) -> bool:
    contiguous = stored.flags.writeable and stored[0].flags.f_contiguous
    return contiguous and stored.dtype == np.float32 and stored.dtype.isnative and (slope, inter) == (1.0, 0.0)


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Boxes over (C, i, j, k) of one channel and some slices k each."""
    channels, i, j, k = shape
    thick = max(1, _SLAB_VOXELS // max(1, i * j))
    for channel in range(channels):
        for start in range(0, k, thick):
            yield slice(channel, channel + 1), slice(None), slice(None), slice(start, min(k, start + thick))


def _scaled(stored: Stored, slope: float, inter: float) -> npt.NDArray[np.float64]:
    """The values that the numbers stand for; what is too large becomes infinite, which the caller reports."""
    with np.errstate(over="ignore"):
        return stored.astype(np.float64) * slope + inter


def _fits_float32(values: npt.NDArray[np.float64], where: str, slope: float, inter: float) -> None:
    low, high = float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    for value in (low, high):
        if np.isfinite(value) and abs(value) > FLOAT32_MAX:
            raise InputError(
                f"{where}: a voxel has the value {value:.3g} (header scale {slope:g}, {inter:g}), beyond what 32-bit "
                "numbers hold. Correct the scale in the header."
            )


def _count_not_whole(stored: Stored, slope: float, inter: float) -> int:
    count = 0
    for slab in _slabs((1, *stored.shape)):
        values = _scaled(stored[slab[1:]], slope, inter)
        with np.errstate(invalid="ignore"):
            count += int(np.count_nonzero(~(np.abs(values - np.rint(values)) <= LABEL_TOLERANCE)))
    return count


def _of_channel(number: int, channels: int) -> str:
    return f" of channel {number}" if channels > 1 else ""
