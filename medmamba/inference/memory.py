"""What a prediction will need, said before it starts, and whether its planes have to go to disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod

from medmamba.trail import SpatialTrail

IN_MEMORY_BYTES = 2 * 2**30
"""Planes that need more than this are kept on disk."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the large arrays of one prediction, the network's own activations left out.

    ``naive`` is what the logits of the whole image at its own spacing would need.
    """

    planes: int
    image: int
    tile: int
    output: int
    naive: int

    @property
    def spills(self) -> bool:
        """Whether the planes go to disk."""
        return self.planes > IN_MEMORY_BYTES

    @property
    def peak(self) -> int:
        """Largest sum at one time."""
        return (0 if self.spills else self.planes) + self.image + self.tile + self.output

    def sentence(self) -> str:
        """For people, before the start."""
        disk = f", and {self.planes / 2**30:.1f} GiB of scratch space" if self.spills else ""
        return (
            f"needs about {self.peak / 2**30:.1f} GiB of memory{disk}, besides the network "
            f"(all logits at once: {self.naive / 2**30:.1f} GiB)"
        )


def estimate_memory(
    trail: SpatialTrail, channels: int, classes: int, box: tuple[int, int, int], *, batch: int = 1, members: int = 1
) -> MemoryEstimate:
    """The arrays of a prediction along ``trail`` with patches of ``box`` voxels."""
    planned, cropped = trail.grid.shape, trail.steps[-1].shape_before
    padded = [max(extent, edge) for extent, edge in zip(planned, box, strict=True)]
    label_bytes = 1 if classes <= 256 else 2
    return MemoryEstimate(
        planes=4 * classes * min(box[0], padded[0]) * padded[1] * padded[2],
        image=4 * channels * (prod(trail.native.shape) + 2 * prod(padded)),
        # logits of each member, their mean, and one plane weighted
        tile=4 * classes * prod(box) * batch * (members + 1 + (members > 1)),
        output=2 * label_bytes * prod(trail.native.shape) + 4 * 4 * classes * cropped[1] * cropped[2],
        naive=4 * classes * prod(cropped),
    )


def free_memory() -> int | None:
    """Bytes that a program can still take; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
