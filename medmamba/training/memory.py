"""Out of memory in training: what to give up, in which order.

First patches of the batch, then the activations (computed again in the backward pass), then the size of the patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medmamba.errors import ResourceError


@dataclass(frozen=True)
class MemorySettings:
    """What training puts into memory: patches per batch, edges of a patch, whether activations are recomputed."""

    batch_size: int
    patch_size: tuple[int, ...]
    recompute: bool

    def __str__(self) -> str:
        patch = " x ".join(str(edge) for edge in self.patch_size)
        return f"batch {self.batch_size}, patch {patch}{', activations recomputed' if self.recompute else ''}"


def smaller_fit(fit: MemorySettings, divisor: Sequence[int], can_recompute: bool) -> MemorySettings:
    """The next smaller fit; raises ResourceError when nothing is left to give up.

    The batch is halved down to one patch. A patch loses one ``divisor`` (the product of the network's strides) of its
    longest edge in these units, down to two of them.
    """
    if fit.batch_size > 1:
        return MemorySettings(fit.batch_size // 2, fit.patch_size, fit.recompute)
    if not fit.recompute and can_recompute:
        return MemorySettings(fit.batch_size, fit.patch_size, True)
    units = [edge // step for edge, step in zip(fit.patch_size, divisor, strict=True)]
    if max(units) <= 2:
        raise ResourceError(
            f"Out of memory even with {fit}. Use a device with more memory, plan again for this one "
            f"(--device-memory), or train a smaller network (--network plain_unet)."
        )
    axis = units.index(max(units))
    patch = list(fit.patch_size)
    patch[axis] = divisor[axis] * max(2, units[axis] * 3 // 4)
    return MemorySettings(fit.batch_size, tuple(patch), fit.recompute)
