"""Any input size: pad at the end of each axis to what the strides need, crop the output back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def pad_to_multiple(x: Tensor, multiple: Sequence[int]) -> Tensor:
    """(B, C, *S) with every axis padded at its end to a multiple; repeats the border, so that no edge appears."""
    missing = [-n % m for n, m in zip(x.shape[2:], multiple, strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [side for m in reversed(missing) for side in (0, m)], mode="replicate")


def crop_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, C, *S) cut at the end of each axis to ``shape``."""
    if tuple(x.shape[2:]) == tuple(shape):
        return x
    return x[(slice(None), slice(None), *(slice(n) for n in shape))]
