"""Mamba-2's layer on a sequence as published; the planned networks use its scan (``planned/mate.py``).

Source: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060), section 7.

Glossary: L tokens, h heads of p channels, N state size, g groups that share B and C.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.kernels import ssd_chunked
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.planned.mate import GatedRMSNorm, HeadScan


class Mamba2(nn.Module):
    """The plain layer on a sequence, (B, L, d) to (B, L, d), computed in blocks (state space duality).

    Args:
        width: d; the inner width is ``expand`` times as large.
        head_width: p; must divide the inner width.
        groups: g.
        bias, conv_bias: whether the projections and the convolution have one.
        block: tokens of a block.
    """

    def __init__(
        self,
        width: int,
        *,
        state_size: int = 64,
        kernel: int = 4,
        expand: float = 2.0,
        head_width: int = 64,
        groups: int = 1,
        bias: bool = False,
        conv_bias: bool = True,
        block: int = 64,
    ) -> None:
        super().__init__()
        inner = int(expand * width)
        self.parts = [inner, inner, groups * state_size, groups * state_size, inner // head_width]  # z, x, B, C, dt
        mixed = sum(self.parts[1:4])
        self.groups, self.block = groups, block
        self.in_proj = Linear(width, sum(self.parts), bias=bias)
        self.conv1d = nn.Conv1d(mixed, mixed, kernel, groups=mixed, padding=kernel - 1, bias=conv_bias)
        self.scan = HeadScan(inner, head_width)
        self.norm = GatedRMSNorm(inner)
        self.out_proj = Linear(inner, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        scan = self.scan
        z, mixed, dt = self.in_proj(tokens).split([self.parts[0], sum(self.parts[1:4]), self.parts[4]], dim=-1)
        mixed = F.silu(self.conv1d(mixed.mT)[..., : tokens.shape[1]].mT)
        X, B, C = mixed.split(self.parts[1:4], dim=-1)
        X = X.unflatten(-1, (scan.heads, scan.head_width))
        B, C = (t.unflatten(-1, (self.groups, -1)) for t in (B, C))  # (B, L, g, N)
        dt = F.softplus(dt + scan.dt_bias)  # (B, L, h)
        Y = ssd_chunked(X * dt[..., None], -torch.exp(scan.A_log) * dt, B, C, chunk=self.block)
        assert isinstance(Y, Tensor)
        return self.out_proj(self.norm((Y + X * scan.D[:, None]).flatten(-2), z))
