"""MambaOut in its planned form: gated convolutions, a Mamba block without its scan, in the U-Net frame.

Source: Yu and Wang 2024, MambaOut: Do we really need Mamba for vision? (arXiv:2405.07992), and its public code.

    block(x) = x + DropPath( fc2( GELU(g) * [i | depthwise(c)] ) ),   [g | i | c] = fc1( LayerNorm(x) )
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import depthwise, on_channels_last
from medmamba.networks.blocks.residual import DropPath
from medmamba.networks.planned.registry import OddEdge, Rate, WidthRatio, unet_family
from medmamba.networks.planned.stage_mixers import local_kernel
from medmamba.networks.planned.unet import BlockFactory, Topology

EPS = 1e-6  # of every LayerNorm of the original


class GatedCNNBlock(nn.Module):
    """(B, *S, C) to (B, *S, C); the convolution sees ``conv_ratio`` * C of the ``expansion`` * C hidden channels."""

    def __init__(
        self,
        width: int,
        *,
        kernel: Sequence[int] = (7, 7),
        expansion: float = 8 / 3,
        conv_ratio: float = 1.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden, seen = int(expansion * width), int(conv_ratio * width)
        self.parts = (hidden, hidden - seen, seen)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.fc1 = Linear(width, 2 * hidden)
        self.conv = depthwise(seen, kernel)
        self.fc2 = Linear(hidden, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        g, i, c = self.fc1(self.norm(x)).split(self.parts, dim=-1)
        c = on_channels_last(self.conv, c)
        return x + self.drop_path(self.fc2(F.gelu(g) * torch.cat([i, c], dim=-1)))


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
        kernel = local_kernel(topology, stage, edge)
        return GatedCNNBlock(
            width, kernel=kernel, expansion=expansion, conv_ratio=conv_ratio, drop_path=rate(stage, index)
        )

    return block
