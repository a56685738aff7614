"""Deformable convolution, version 4, in 2D and 3D.

Source: Xiong et al. 2024, DCNv4 (arXiv:2401.06197). Each token gathers its neighbourhood at learned places, with
learned weights: an adaptive, group-wise weighted sum; the channels mix only in the linear maps around it.

Glossary: C channels in G groups, K taps, S = (H, W) or (D, H, W). Per token and group the linear map ``offset_mask``
gives K offsets, each as many numbers as axes, last axis first (dx, dy[, dz]), then K weights. The weights are used as
they are: no softmax, no bound. Taps are counted with the last axis slowest: column by column.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.vss import channels_first, channels_last, depthwise

ALIGNMENT = 8  # the published operator pads the numbers per token to a multiple of this


def numbers_per_token(groups: int, taps: int, dims: int) -> int:
    """Width of ``offset_mask``: G * K * (dims + 1), padded."""
    return ALIGNMENT * ceil(groups * taps * (dims + 1) / ALIGNMENT)


def deformable_sum(
    value: Tensor,
    offset_mask: Tensor,
    groups: int,
    *,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Weighted sum of interpolated values: value (B, *S, C) and offset_mask (B, *S_out, P) give (B, *S_out, C).

    Places outside count as zero. ``offset_scale`` stretches the grid of taps as well as the offsets.
    """
    dims = len(kernel)
    stride, dilation = stride or (1,) * dims, dilation or (1,) * dims
    padding = padding or tuple(k // 2 for k in kernel)
    B, grid, out_grid = value.shape[0], value.shape[1:-1], offset_mask.shape[1:-1]
    taps = [t[::-1] for t in product(*(range(k) for k in reversed(kernel)))]  # last axis slowest; as (axis 0, 1, ..)
    if remove_center:
        taps.remove(tuple(k // 2 for k in kernel))
    K = len(taps)
    numbers = offset_mask[..., : groups * K * (dims + 1)].unflatten(-1, (groups, K * (dims + 1)))
    offsets = numbers[..., : K * dims].unflatten(-1, (K, dims)).flip(-1)  # (B, *S_out, G, K, dims), axis 0 first
    weights = numbers[..., K * dims :]  # (B, *S_out, G, K)

    maps = channels_first(value).unflatten(1, (groups, -1)).flatten(0, 1)  # (B*G, C/G, *S)
    axes = [torch.arange(n, device=value.device, dtype=value.dtype) for n in out_grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (*S_out, dims)
    extent = value.new_tensor(list(grid))
    out: Tensor | None = None
    for k, tap in enumerate(taps):
        base = []
        for a in range(dims):
            half = (dilation[a] * (kernel[a] - 1)) // 2
            base.append(half - padding[a] - half * offset_scale + tap[a] * dilation[a] * offset_scale)
        at = places * value.new_tensor(list(stride)) + value.new_tensor(base)  # (*S_out, dims)
        at = at[..., None, :] + offsets[..., k, :] * offset_scale  # (B, *S_out, G, dims), in voxels
        at = ((at + 0.5) * 2 / extent - 1).flip(-1).movedim(-2, 1).flatten(0, 1)  # (B*G, *S_out, dims), last axis first
        sampled = F.grid_sample(maps, at, mode="bilinear", padding_mode="zeros", align_corners=False)
        part = sampled * weights[..., k].movedim(-1, 1).flatten(0, 1).unsqueeze(1)
        out = part if out is None else out + part
    assert out is not None
    return channels_last(out.unflatten(0, (B, groups)).flatten(1, 2))


class DeformableConv(nn.Module):
    """(B, *S, C) to (B, *S, C): the sum above with its offsets and weights, size kept.

    Args:
        channels: C.
        groups: G; must divide C.
        offset_kernel: edge of a depthwise convolution before ``offset_mask``; none if None.
        pointwise: linear maps of the values before and of the sum after; HRVMamba was trained without.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        spatial_dims: int = 2,
        kernel: int = 3,
        offset_kernel: int | None = None,
        pointwise: bool = False,
        output_bias: bool = True,
    ) -> None:
        super().__init__()
        if channels % groups:
            nearest = round(channels / groups) * groups or groups
            raise ConfigError(f"{channels} channels do not divide among {groups} deformable groups; use {nearest}.")
        self.groups, self.kernel = groups, (kernel,) * spatial_dims
        self.offset_mask_dw = depthwise(channels, (offset_kernel,) * spatial_dims) if offset_kernel else None
        self.offset_mask = nn.Linear(channels, numbers_per_token(groups, prod(self.kernel), spatial_dims))
        self.value_proj = nn.Linear(channels, channels) if pointwise else None
        self.output_proj = nn.Linear(channels, channels, bias=output_bias) if pointwise else None
        nn.init.trunc_normal_(self.offset_mask.weight, std=0.02)
        nn.init.zeros_(self.offset_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        seen = x if self.offset_mask_dw is None else channels_last(self.offset_mask_dw(channels_first(x)))
        value = x if self.value_proj is None else self.value_proj(x)
        y = deformable_sum(value, self.offset_mask(seen), self.groups, kernel=self.kernel)
        return y if self.output_proj is None else self.output_proj(y)
