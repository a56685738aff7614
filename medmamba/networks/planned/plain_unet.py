"""nnU-Net's default network, PlainConvUNet: stacked convolutions per stage, the first of them strided.

Source: Isensee et al. 2021 (arXiv:1904.08128); dynamic-network-architectures 0.4.4.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from medmamba.networks.planned.conv_unet import ConvNorm, ConvUNet, decoder_stages, encoder_numbers, initialise
from medmamba.networks.planned.registry import network
from medmamba.networks.planned.unet import Topology


@network("plain_unet", full_resolution_only=True, min_stages=3, default_blocks=(2,))
def plain_unet(topology: Topology, *, decoder_convs: int | Sequence[int] = 2) -> nn.Module:
    """nnU-Net's default network, PlainConvUNet: two convolutions per stage.

    Args:
        topology: the plan's numbers; ``blocks_per_stage`` counts the convolutions of an encoder stage.
        decoder_convs: convolutions per decoder stage, from the bottleneck up.
    """
    encoder = (
        nn.Sequential(
            ConvNorm(before, width, kernel, stride), *(ConvNorm(width, width, kernel) for _ in range(convs - 1))
        )
        for before, width, kernel, stride, convs in encoder_numbers(topology)
    )
    return ConvUNet(topology, encoder, decoder_stages(topology, decoder_convs)).apply(initialise)
