"""Which axis of a volume is so coarse that it is treated on its own."""

from __future__ import annotations

from collections.abc import Sequence

ANISOTROPY_THRESHOLD = 3.0
"""Ratio of coarsest to finest spacing (and of voxel counts) above which a volume counts as anisotropic.
Source: nnU-Net, ANISO_THRESHOLD."""


def separate_axis(current_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis that is resampled on its own, because interpolating across it would invent anatomy, or None.

    The image's spacing decides where it is anisotropic, else the target's; two equally coarse axes are not separated.
    Source: nnU-Net 2.8.1, default_resampling.

    >>> separate_axis((5, 1, 1), (1, 1, 1)), separate_axis((3, 1, 1), (1, 1, 1))
    (0, None)
    """
    for spacing in (current_spacing, new_spacing):
        coarsest = max(spacing)
        if coarsest / min(spacing) > ANISOTROPY_THRESHOLD:
            axes = [axis for axis, value in enumerate(spacing) if value == coarsest]
            return axes[0] if len(axes) == 1 else None
    return None
