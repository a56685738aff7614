"""MambaOut's gated convolution: a Mamba block without its scan.

Source: Yu and Wang 2024, MambaOut: Do we really need Mamba for vision? (arXiv:2405.07992), and its public code.

    block(x) = x + DropPath( fc2( GELU(g) * [i | depthwise(c)] ) ),   [g | i | c] = fc1( LayerNorm(x) )
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import channels_first, channels_last, depthwise, per_axis
from medmamba.networks.blocks.residual import DropPath

EPS = 1e-6  # of every LayerNorm of the original


class GatedCNNBlock(nn.Module):
    """(B, *S, C) to (B, *S, C).

    Args:
        width: C.
        expansion: hidden width over C (cut to an integer).
        kernel: edge of the depthwise convolution.
        conv_ratio: fraction of C that the convolution sees; the rest passes beside it.
    """

    def __init__(
        self,
        width: int,
        *,
        spatial_dims: int = 2,
        expansion: float = 8 / 3,
        kernel: int | tuple[int, ...] = 7,
        conv_ratio: float = 1.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden, seen = int(expansion * width), int(conv_ratio * width)
        self.parts = (hidden, hidden - seen, seen)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.fc1 = Linear(width, 2 * hidden)
        self.conv = depthwise(seen, per_axis(kernel, spatial_dims))
        self.fc2 = Linear(hidden, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        g, i, c = self.fc1(self.norm(x)).split(self.parts, dim=-1)
        c = channels_last(self.conv(channels_first(c)))
        return x + self.drop_path(self.fc2(F.gelu(g) * torch.cat([i, c], dim=-1)))
