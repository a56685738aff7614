"""Memory of a data worker in which it leaves batches for the training process, so that no pipe carries them.

It is anonymous: it has no name in /dev/shm, whose size (64 MB in many containers) does not bound it, and nothing of it
outlives the processes, however they end.
"""

import mmap
import multiprocessing
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes at whose multiples an array begins."""


class ArrayPlace(NamedTuple):
    """Where an array lies in the memory, and what it is."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


class SharedSlot:
    """Memory that the processes share that are forked after it is made; raises OSError where there is none."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size)
        self.size = size

    def write(self, arrays: Sequence[NDArray]) -> list[ArrayPlace] | None:
        """Copy arrays into the memory; returns their places, or None where they do not fit."""
        places, offset = [], 0
        for array in arrays:
            places.append(ArrayPlace(offset, array.shape, array.dtype.str))
            offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if offset > self.size:
            return None
        for array, inside in zip(arrays, self.read(places), strict=True):
            np.copyto(inside, array)
        return places

    def read(self, places: Sequence[ArrayPlace]) -> list[NDArray]:
        """The arrays at these places, on the memory itself."""
        return [
            np.frombuffer(self._memory, place.dtype, prod(place.shape), place.offset).reshape(place.shape)
            for place in map(ArrayPlace._make, places)
        ]


def shared_slots(size: int, count: int) -> list[SharedSlot]:
    """Slots of at least ``size`` bytes each; none where worker processes are not forked and so could not share them."""
    if multiprocessing.get_start_method() != "fork":
        return []
    pages = -(-(size + 16 * ALIGNMENT) // mmap.PAGESIZE)
    return [SharedSlot(pages * mmap.PAGESIZE) for _ in range(count)]
