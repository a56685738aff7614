"""Changing resolution on channels-last maps: embed, merge and expand, in 2D and 3D, with one stride per axis.

Source: VM-UNet (arXiv:2402.02491), section 3.1; merging after Swin (arXiv:2103.14030), expanding after Swin-Unet
(arXiv:2105.05537). With strides of 2 per axis in 2D these are the published layers, parameter for parameter.
"""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor, nn

from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import CONV, channels_last


class PatchEmbed(nn.Module):
    """(B, in, *S) to (B, *S/stride, C): convolution whose kernel is its stride, then LayerNorm. Remainders are cut."""

    def __init__(self, in_channels: int, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.proj = CONV[len(stride)](in_channels, width, tuple(stride), tuple(stride))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(channels_last(self.proj(x)))


class PatchMerging(nn.Module):
    """(B, *S, C) to (B, *S/stride, C_out): the cells of a patch side by side, LayerNorm, Linear. Remainders are cut.

    Cells are ordered with the first axis fastest, as Swin does: (0, 0), (1, 0), (0, 1), (1, 1).
    """

    def __init__(self, width: int, out_width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        cells = prod(self.stride)
        self.norm = nn.LayerNorm(cells * width)
        self.reduction = Linear(cells * width, out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        whole = [n // s * s for n, s in zip(x.shape[1:-1], self.stride, strict=True)]
        parts = []
        for offset in product(*(range(s) for s in reversed(self.stride))):
            cell = (slice(o, n, s) for o, n, s in zip(reversed(offset), whole, self.stride, strict=True))
            parts.append(x[(slice(None), *cell)])
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class PatchExpand(nn.Module):
    """(B, *S, C) to (B, *S*stride, C_out): Linear to one vector per cell, laid out in space, LayerNorm."""

    def __init__(self, width: int, out_width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.expand = Linear(width, prod(self.stride) * out_width, bias=False)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(depth_to_space(self.expand(x), self.stride))


class Level(nn.Module):
    """Blocks at one resolution of a published U-Net, after an expansion to it or before a merging to the next."""

    def __init__(
        self, blocks: Sequence[nn.Module], *, upsample: nn.Module | None = None, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.upsample = upsample or nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(self.upsample(x)))


def depth_to_space(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, *S, p1*p2*..*c) to (B, *S*stride, c); the channel index counts p1 slowest, c fastest."""
    grid, dims = x.shape[1:-1], len(stride)
    x = x.unflatten(-1, (*stride, -1))  # (B, *S, *stride, c)
    order = [0, *(axis for i in range(dims) for axis in (1 + i, 1 + dims + i)), 1 + 2 * dims]
    return x.permute(order).reshape(x.shape[0], *(n * s for n, s in zip(grid, stride, strict=True)), -1)
