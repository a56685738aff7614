"""The convolution U-Nets of medmamba before nnU-Net's own: one block per stage, whatever the plan said.

Only for run folders and bundles that were written then. ``plain_unet`` had two convolutions per stage and
``residual_unet`` one residual block, without biases; the blocks and their names are those of MONAI's DynUNet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmamba.networks.blocks.convolution import SLOPE, TRANSPOSED
from medmamba.networks.blocks.maps import CONV
from medmamba.networks.planned.conv_unet import NORM, ConvUNet
from medmamba.networks.planned.registry import network
from medmamba.networks.planned.unet import Topology

ONE_BLOCK = {"plain_unet": "plain_unet_one_block", "residual_unet": "residual_unet_one_block"}


def is_one_block(arguments: Mapping[str, Any]) -> bool:
    """Whether stored arguments describe one of the networks here.

    Every record of nnU-Net's own networks has ``decoder_convs``, which was no argument of those before.
    """
    return arguments.get("name") in ONE_BLOCK and "decoder_convs" not in arguments


@network(ONE_BLOCK["plain_unet"], full_resolution_only=True, min_stages=3, retired=True)
def plain_unet(topology: Topology) -> nn.Module:
    """Two convolutions per stage."""
    return _unet(topology, PlainPair)


@network(ONE_BLOCK["residual_unet"], full_resolution_only=True, min_stages=3, retired=True)
def residual_unet(topology: Topology) -> nn.Module:
    """One residual block of two convolutions per stage."""
    return _unet(topology, ResidualPair)


def _unet(topology: Topology, block: type[PlainPair]) -> nn.Module:
    t, dims, widths = topology, topology.spatial_dims, topology.features_per_stage
    down = zip((t.in_channels, *widths[:-1]), widths, t.kernels, t.strides, strict=True)
    up = zip(widths[1:], widths[:-1], t.kernels[1:], t.strides[1:], strict=True)
    encoder = [block(dims, *numbers) for numbers in down]
    return ConvUNet(topology, encoder, [UpBlock(dims, *numbers) for numbers in up][::-1])


class PlainPair(nn.Module):
    """Twice convolution, instance norm and leaky ReLU; the first convolution strides."""

    def __init__(self, dims: int, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = _convolution(dims, before, width, kernel, stride)
        self.conv2 = _convolution(dims, width, width, kernel, [1] * dims)
        self.lrelu = nn.LeakyReLU(SLOPE, inplace=True)
        self.norm1, self.norm2 = (NORM[dims](width, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lrelu(self.norm1(self.conv1(x)))
        return self.lrelu(self.norm2(self.conv2(x)))


class ResidualPair(PlainPair):
    """A pair of convolutions beside a shortcut, which is a convolution of one voxel if width or resolution change."""

    def __init__(self, dims: int, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__(dims, before, width, kernel, stride)
        self.conv3: nn.Module = nn.Identity()
        self.norm3: nn.Module = nn.Identity()
        if before != width or max(stride) > 1:
            self.conv3 = _convolution(dims, before, width, [1] * dims, stride)
            self.norm3 = NORM[dims](width, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.lrelu(self.norm1(self.conv1(x)))))
        inner += self.norm3(self.conv3(x))
        return self.lrelu(inner)


class UpBlock(nn.Module):
    """A transposed convolution to the resolution of the last skip, then a plain pair of both."""

    def __init__(self, dims: int, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        whole = TRANSPOSED[dims](before, width, tuple(stride), tuple(stride), bias=False)
        self.transp_conv = nn.Sequential(OrderedDict(conv=whole))
        self.conv_block = PlainPair(dims, 2 * width, width, kernel, [1] * dims)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        return self.conv_block(torch.cat((self.transp_conv(x), skips.pop()), dim=1))


def _convolution(dims: int, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Module:
    padding = tuple((edge - step + 1) // 2 for edge, step in zip(kernel, stride, strict=True))
    return nn.Sequential(OrderedDict(conv=CONV[dims](before, width, tuple(kernel), tuple(stride), padding, bias=False)))
