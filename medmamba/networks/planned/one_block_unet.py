"""The convolution U-Nets of medmamba before nnU-Net's own: one block per stage, whatever the plan said.

Only for run folders and bundles that were written then. They are made of the blocks of MONAI's DynUNet; MONAI is
imported when one is built, because it needs as much memory as torch itself.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medmamba.networks.planned.plain_unet import ConvUNet
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
    return _unet(topology, "UnetBasicBlock")


@network(ONE_BLOCK["residual_unet"], full_resolution_only=True, min_stages=3, retired=True)
def residual_unet(topology: Topology) -> nn.Module:
    """One residual block of two convolutions per stage."""
    return _unet(topology, "UnetResBlock")


class UpBlock(nn.Module):
    """A transposed convolution to the resolution of the last skip, then two convolutions of both."""

    def __init__(self, transp_conv: nn.Module, conv_block: nn.Module) -> None:
        super().__init__()
        self.transp_conv, self.conv_block = transp_conv, conv_block

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        return self.conv_block(torch.cat((self.transp_conv(x), skips.pop()), dim=1))


def _unet(topology: Topology, block: str) -> nn.Module:
    from monai.networks.blocks import dynunet_block

    t, widths = topology, topology.features_per_stage
    norm = ("INSTANCE", {"affine": True})
    down = zip((t.in_channels, *widths[:-1]), widths, t.kernels, t.strides, strict=True)
    encoder = [getattr(dynunet_block, block)(t.spatial_dims, *numbers, norm) for numbers in down]
    up = zip(widths[1:], widths[:-1], t.kernels[1:], strict=True)
    decoder = []
    for (before, width, kernel), stride in zip(up, t.strides[1:], strict=True):
        made = dynunet_block.UnetUpBlock(t.spatial_dims, before, width, kernel, 1, stride, norm)
        decoder.append(UpBlock(made.transp_conv, made.conv_block))
    return ConvUNet(topology, encoder, decoder[::-1])
