"""MambaOut in its planned form: gated convolutions in the U-Net frame, the control without a scan."""

from __future__ import annotations

from torch import nn

from medmamba.errors import ConfigError
from medmamba.networks.blocks.mambaout import GatedCNNBlock
from medmamba.networks.planned.bounds import OddEdge, WidthRatio
from medmamba.networks.planned.registry import Rate, unet_family
from medmamba.networks.planned.stage_mixers import local_kernel
from medmamba.networks.planned.unet import BlockFactory, Topology


@unet_family("mambaout")
def mambaout(
    topology: Topology, rate: Rate, *, kernel: OddEdge = None, expansion: WidthRatio = 2.0, conv_ratio: WidthRatio = 1.0
) -> BlockFactory:
    """MambaOut's gated convolution (arXiv:2405.07992): a Mamba block without a scan, which shows what a scan is worth.

    Args:
        kernel: edge of the depthwise convolution; 7 in 2D and 5 in 3D if None.
        expansion: hidden width over the stage's width (the published 8/3 is for networks without other convolutions).
        conv_ratio: fraction of the channels that the convolution sees, at most the expansion.
    """
    if conv_ratio > expansion:
        raise ConfigError(f"conv_ratio {conv_ratio} is more than the expansion; use at most {expansion}.")
    edge = kernel or {2: 7, 3: 5}[topology.spatial_dims]

    def block(stage: int, index: int, width: int) -> nn.Module:
        return GatedCNNBlock(
            width,
            spatial_dims=topology.spatial_dims,
            expansion=expansion,
            kernel=local_kernel(topology, stage, edge),
            conv_ratio=conv_ratio,
            drop_path=rate(stage, index),
        )

    return block
