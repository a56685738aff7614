"""Sliding-window prediction: overlapping patches, weighted by a Gaussian, averaged.

MONAI's window places its last patch against the border and so gives the border region other overlaps than the rest;
nnU-Net spreads the patches evenly. The positions and weights here are nnU-Net's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, combinations, product
from math import ceil

import numpy as np
import torch
from torch import nn

STEP = 0.5
"""Distance of neighbouring patches as a share of the patch edge."""
SIGMA_SCALE = 0.125
"""Width of the Gaussian weight as a share of the patch edge."""


def window_starts(size: int, patch: int, step: float = STEP) -> list[int]:
    """First voxels of the patches along one axis: evenly spread from border to border, at most ``step`` apart."""
    if size <= patch:
        return [0]
    count = ceil((size - patch) / (patch * step)) + 1
    return [round((size - patch) / (count - 1) * index) for index in range(count)]


@lru_cache(maxsize=8)
def gaussian_weight(patch_size: tuple[int, ...]) -> torch.Tensor:
    """Weight of each voxel of a patch: a Gaussian around its centre, at most 10, never 0."""
    from scipy.ndimage import gaussian_filter

    peak = np.zeros(patch_size)
    peak[tuple(edge // 2 for edge in patch_size)] = 1.0
    weight = gaussian_filter(peak, [edge * SIGMA_SCALE for edge in patch_size], mode="constant")
    tensor = torch.from_numpy(weight).float()
    tensor *= 10 / tensor.max()
    tensor[tensor == 0] = tensor[tensor > 0].min()
    return tensor


@torch.no_grad()
def predict_logits(
    network: nn.Module,
    image: torch.Tensor,
    patch_size: tuple[int, ...],
    device: torch.device,
    *,
    mirror_axes: Sequence[int] = (),
    step: float = STEP,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> torch.Tensor:
    """Logits (classes, I, J, K) of an image (C, I, J, K) on the plan's grid, float32 on the CPU.

    A patch of two edges is moved over every slice of the first axis. ``mirror_axes`` (counted in the patch) adds the
    mean over all flips along them. Images smaller than the patch are padded with zeros and cropped again.
    """
    network.eval()
    flat = len(patch_size) == 2
    window = (1, *patch_size) if flat else tuple(patch_size)
    padded, inside = _pad(image, window)
    tiles = list(product(*(window_starts(n, edge, step) for n, edge in zip(padded.shape[1:], window, strict=True))))
    weight = gaussian_weight(tuple(patch_size))
    total: torch.Tensor | None = None
    weights = torch.zeros(padded.shape[1:])
    for done, start in enumerate(tiles):
        box = tuple(slice(first, first + edge) for first, edge in zip(start, window, strict=True))
        patch = padded[(slice(None), *box)][None].to(device)
        logits = _mirrored(network, patch[:, :, 0] if flat else patch, mirror_axes)[0].float().cpu()
        if total is None:
            total = torch.zeros((logits.shape[0], *padded.shape[1:]))
        total[(slice(None), *box)] += (logits * weight)[:, None] if flat else logits * weight
        weights[box] += weight
        on_tile(done + 1, len(tiles))
    assert total is not None
    total /= weights
    result = total[(slice(None), *inside)]
    if not torch.isfinite(result).all():
        raise FloatingPointError("the network gave logits that are not finite numbers")
    return result


def _mirrored(network: nn.Module, patch: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    flips = list(_subsets([axis + 2 for axis in axes]))
    return torch.stack([torch.flip(network(torch.flip(patch, flip)), flip) for flip in flips]).mean(0)


def _subsets(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1))


def _pad(image: torch.Tensor, window: tuple[int, ...]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    padding: list[int] = []
    inside = []
    for extent, edge in zip(image.shape[1:], window, strict=True):
        missing = max(edge - extent, 0)
        before = missing // 2
        padding = [before, missing - before, *padding]  # torch counts from the last axis
        inside.append(slice(before, before + extent))
    return nn.functional.pad(image, padding), tuple(inside)
