"""Estimate of the memory that a prediction needs, and whether its planes go to disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from medmamba.errors import size_text
from medmamba.geometry.trail import SpatialTrail


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the large arrays of one prediction, the network's own activations left out.

    ``naive`` is what the logits of the whole image at its own spacing would need.
    """

    planes: int
    others: int
    naive: int
    budget: int

    @property
    def spills(self) -> bool:
        """Whether the planes go to disk."""
        return self.planes + self.others > self.budget

    @property
    def peak(self) -> int:
        """Largest sum at one time."""
        return self.others + (0 if self.spills else self.planes)

    def sentence(self) -> str:
        disk = f", and {size_text(self.planes)} of scratch space" if self.spills else ""
        return (
            f"needs about {size_text(self.peak)} of memory{disk}, besides the network "
            f"(all logits at once: {size_text(self.naive)})"
        )


def estimate_memory(
    trail: SpatialTrail,
    *,
    channels: int,
    classes: int,
    box: tuple[int, int, int],
    budget: int,
    batch: int = 1,
    passes: int = 1,
    number_bytes: int = 4,
) -> MemoryEstimate:
    """The arrays of a prediction along ``trail`` with patches of ``box`` voxels, the mean of ``passes``; in bytes.

    ``number_bytes`` are those of a voxel and class in the planes in which patches are added up.
    """
    planned, cropped = trail.grid.shape, trail.split_resampling()[1].shape_before
    between = cropped[0] * planned[1] * planned[2]
    padded = [max(extent, edge) for extent, edge in zip(planned, box, strict=True)]
    label_bytes = 1 if classes <= 256 else 2
    # as it was read, and on the plan's grid, before its last step or with the padding behind it
    image = 4 * channels * (prod(trail.native.shape) + prod(planned) + max(between, prod(padded)))
    # one pass; of several their sum and the sum with the first
    tile = 4 * classes * prod(box) * batch * (1 if passes == 1 else 3)
    # labels on both sides of the last step, and three planes between accumulation and interpolation
    output = 2 * label_bytes * prod(trail.native.shape) + 3 * 4 * classes * planned[1] * planned[2]
    planes = number_bytes * classes * min(box[0], planned[0]) * planned[1] * planned[2]
    return MemoryEstimate(planes, image + tile + output, 4 * classes * prod(cropped), budget)


def device_bytes(shape: Sequence[int], classes: int, box: tuple[int, int, int]) -> int:
    """What an image (C, I, J, K) and the sums of its patches take on a device, besides the networks."""
    channels, planes, rows, columns = shape
    padded = [max(extent, edge) for extent, edge in zip(shape[1:], box, strict=True)]
    # planes that are summed up, and finished ones on their way to the host; the weights are one channel more
    sums = 2 * (classes + 1) * min(box[0], planes) * rows * columns
    return 4 * (channels * prod(padded) + sums)
