"""The convolution networks that every comparison is made against, from the same plan.

nnU-Net's topology (Isensee et al. 2021, arXiv:1904.08128), plain or with residual blocks, with the plan's strides,
widths and kernels. The blocks are those of MONAI's DynUNet, name by name, so that weights pass from one to the other
(tests/networks/test_baselines.py compares the two); written here, because importing MONAI takes a process of a
prediction as much memory as torch itself, and DynUNet registers every block twice and upsamples its deep-supervision
outputs into one tensor, where the planned networks return a list from fine to coarse, each at its own resolution.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medmamba.networks.blocks.convolution import SLOPE, TRANSPOSED
from medmamba.networks.blocks.maps import CONV
from medmamba.networks.blocks.padding import pad_to_multiple
from medmamba.networks.planned.registry import network
from medmamba.networks.planned.unet import PlannedNetwork, Topology


@network("plain_unet", full_resolution_only=True, min_stages=3)
def plain_unet(topology: Topology) -> nn.Module:
    """nnU-Net's default network: two convolutions per stage."""
    return ConvUNet(topology, residual=False)


@network("residual_unet", full_resolution_only=True, min_stages=3)
def residual_unet(topology: Topology) -> nn.Module:
    """The same with one residual block of two convolutions per stage."""
    return ConvUNet(topology, residual=True)


NORM: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ConvUNet(PlannedNetwork):
    """nnU-Net's topology with the interface of :class:`~medmamba.networks.planned.unet.PlannedUNet`."""

    def __init__(self, topology: Topology, *, residual: bool) -> None:
        super().__init__(topology)
        t = topology
        dims, widths = t.spatial_dims, t.features_per_stage
        block = ResidualBlock if residual else PlainBlock
        before = (t.in_channels, *widths[:-1])
        down = zip(before, widths, t.kernels, t.strides, strict=True)
        self.encoder = nn.ModuleList(block(dims, *numbers) for numbers in down)
        up = zip(widths[1:], widths[:-1], t.kernels[1:], t.strides[1:], strict=True)
        self.decoder = nn.ModuleList([UpBlock(dims, *numbers) for numbers in up][::-1])  # deep to shallow
        self.apply(_initialise)
        heads = t.features_per_stage[:-1] if t.deep_supervision else t.features_per_stage[:1]
        self.heads = nn.ModuleList(CONV[t.spatial_dims](width, t.out_channels, 1) for width in heads)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        x = padded = _with_variance(pad_to_multiple(image, self.total_stride), self.total_stride)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        features = []
        for stage in self.decoder:
            x = stage(x, skips)
            features.append(x)
        return self._logits(features[::-1], image, padded)


class PlainBlock(nn.Module):
    """Twice convolution, instance norm and leaky ReLU; the first convolution strides."""

    def __init__(self, dims: int, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = _convolution(dims, before, width, kernel, stride)
        self.conv2 = _convolution(dims, width, width, kernel, [1] * dims)
        self.lrelu = nn.LeakyReLU(SLOPE, inplace=True)
        self.norm1, self.norm2 = (NORM[dims](width, affine=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def first(self, x: Tensor) -> Tensor:
        """The first convolution, normalised."""
        return self.lrelu(self.norm1(self.conv1(x)))

    def second(self, x: Tensor) -> Tensor:
        """The second one."""
        return self.lrelu(self.norm2(self.conv2(x)))


class ResidualBlock(PlainBlock):
    """The same around a shortcut, which is a convolution of one voxel where width or grid change."""

    def __init__(self, dims: int, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__(dims, before, width, kernel, stride)
        self.conv3: nn.Module = nn.Identity()
        self.norm3: nn.Module = nn.Identity()
        if before != width or max(stride) > 1:
            self.conv3, self.norm3 = (
                _convolution(dims, before, width, [1] * dims, stride),
                NORM[dims](width, affine=True),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.lrelu(self.norm1(self.conv1(x)))))
        inner += self.norm3(self.conv3(x))
        return self.lrelu(inner)


class UpBlock(nn.Module):
    """A transposed convolution to the grid of the last skip, which it takes from the list, then a plain block of both.

    Skip and map of both widths, the largest of a prediction, are let go as soon as they are used.
    """

    def __init__(self, dims: int, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        whole = TRANSPOSED[dims](before, width, tuple(stride), tuple(stride), bias=False)
        self.transp_conv = nn.Sequential(OrderedDict(conv=whole))
        self.conv_block = PlainBlock(dims, 2 * width, width, kernel, [1] * dims)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        x = torch.cat((self.transp_conv(x), skips.pop()), dim=1)
        x = self.conv_block.first(x)
        return self.conv_block.second(x)


def _convolution(dims: int, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Module:
    padding = tuple((edge - step + 1) // 2 for edge, step in zip(kernel, stride, strict=True))
    return nn.Sequential(OrderedDict(conv=CONV[dims](before, width, tuple(kernel), tuple(stride), padding, bias=False)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)


def _with_variance(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The padded input, twice as long where the bottleneck would be one voxel: a single value has no variance."""
    if tuple(x.shape[2:]) != tuple(stride):
        return x
    return pad_to_multiple(x, (*stride[:-1], 2 * stride[-1]))
