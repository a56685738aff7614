"""VMamba's cross-scan and cross-merge (classification/models/csm_triton.py): four orders of an image's positions."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from medmamba.compat.usage import torch_on, used


@lru_cache(maxsize=64)
def _orders(height: int, width: int, scans: int, device: torch.device) -> tuple[Tensor, ...]:
    """The positions, row by row, in each of the four orders."""
    with torch.inference_mode(False):  # kept for trainings too
        rows = torch.arange(height * width, device=device)
        columns = rows.view(height, width).T.flatten()
        orders = {
            0: (rows, columns, rows.flip(0), columns.flip(0)),
            1: (rows, rows, rows, rows),
            2: (rows, rows, rows.flip(0), rows.flip(0)),
        }
    if scans not in orders:
        raise ValueError(f"scans is {scans}; it must be 0 (cross), 1 (one direction) or 2 (both directions).")
    return orders[scans]


def cross_scan_fn(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int = 0,
    force_torch: bool = False,
) -> Tensor:
    """The sequences of an image in four orders.

    x is (batch, C, H, W), or (batch, H, W, C) without `in_channel_first`; with `one_by_one` it holds an image per
    order: (batch, 4, C, H, W) or (batch, H, W, 4, C). Returns (batch, 4, C, L), or (batch, L, 4, C) without
    `out_channel_first`. scans: 0 rows, columns and both reversed; 1 four times rows; 2 twice rows, twice reversed.
    """
    if x.dim() != 4 + one_by_one:
        raise ValueError(f"x must have {4 + one_by_one} axes, it is {tuple(x.shape)}.")
    used("cross_scan_fn", torch_on(x))
    if not in_channel_first:
        x = x.movedim((1, 2), (-2, -1))
    orders = _orders(x.shape[-2], x.shape[-1], scans, x.device)
    flat = x.flatten(-2)  # (batch, C, L) or (batch, 4, C, L)
    images = flat.unbind(1) if one_by_one else [flat] * 4
    axis = 1 if out_channel_first else 2
    sequences = [image.index_select(-1, order) for image, order in zip(images, orders, strict=True)]
    return torch.stack(sequences if out_channel_first else [one.transpose(1, 2) for one in sequences], axis)


def cross_merge_fn(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int = 0,
    force_torch: bool = False,
) -> Tensor:
    """The transpose of `cross_scan_fn`: four sequences back in the image's order, and their sum.

    y is (batch, 4, C, H, W), or (batch, H, W, 4, C) without `out_channel_first`. Returns (batch, C, L), or
    (batch, L, C) without `in_channel_first`; with `one_by_one` no sum: (batch, 4, C, L) or (batch, L, 4, C).
    """
    if y.dim() != 5:
        raise ValueError(f"y must have 5 axes, it is {tuple(y.shape)}.")
    used("cross_merge_fn", torch_on(y))
    if not out_channel_first:
        y = y.movedim((1, 2), (-2, -1))
    orders = _orders(y.shape[-2], y.shape[-1], scans, y.device)
    images = [
        sequence.index_select(-1, torch.argsort(order))
        for sequence, order in zip(y.flatten(-2).unbind(1), orders, strict=True)
    ]
    if not one_by_one:
        total = images[0] + images[1] + images[2] + images[3]
        return total if in_channel_first else total.transpose(1, 2).contiguous()
    together = torch.stack(images, 1)
    return together if in_channel_first else together.movedim(-1, 1).contiguous()


class CrossScanF:
    """`cross_scan_fn` under the name of the original's autograd function."""

    @staticmethod
    def apply(x: Tensor, *options: Any) -> Tensor:
        """`cross_scan_fn`."""
        return cross_scan_fn(x, *options)


class CrossMergeF:
    """`cross_merge_fn` under the name of the original's autograd function."""

    @staticmethod
    def apply(y: Tensor, *options: Any) -> Tensor:
        """`cross_merge_fn`."""
        return cross_merge_fn(y, *options)


CrossScanTritonF = CrossScanF
CrossMergeTritonF = CrossMergeF
