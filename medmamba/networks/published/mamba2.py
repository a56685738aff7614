"""Mamba-2's layer on a sequence as published; the planned networks use its scan (``networks/blocks/mamba2.py``).

Source: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060), section 7.

Glossary: L tokens, h heads of p channels, N state size, g groups that share B and C, q block length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from medmamba.kernels import ssd_chunked
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.mamba2 import GatedRMSNorm, HeadScan
from medmamba.networks.routes import routes


class Mamba2(nn.Module):
    """The plain layer on a sequence, (B, L, d) to (B, L, d).

    Args:
        width: d; the inner width is ``expand`` times as large.
        head_width: p; must divide the inner width.
        groups: g.
        bias, conv_bias: whether the projections and the convolution have one.
        chunked: compute in blocks of ``block`` tokens instead of with the scan kernel; the result is the same.
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
        chunked: bool = False,
        block: int = 64,
    ) -> None:
        super().__init__()
        inner = int(expand * width)
        self.parts = [inner, inner, groups * state_size, groups * state_size, inner // head_width]  # z, x, B, C, dt
        mixed = inner + 2 * groups * state_size
        self.chunked, self.block = chunked, block
        self.in_proj = Linear(width, sum(self.parts), bias=bias)
        self.conv1d = nn.Conv1d(mixed, mixed, kernel, groups=mixed, padding=kernel - 1, bias=conv_bias)
        self.groups = groups
        self.scan = HeadScan(inner, head_width)
        self.norm = GatedRMSNorm(inner)
        self.out_proj = Linear(inner, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        z, mixed, dt = self.in_proj(tokens).split([self.parts[0], sum(self.parts[1:4]), self.parts[4]], dim=-1)
        mixed = F.silu(self.conv1d(mixed.mT)[..., :length].mT)
        x, B, C = mixed.split(self.parts[1:4], dim=-1)
        y = self._blocks(x, dt, B, C) if self.chunked else self._scan(x, dt, B, C)
        return self.out_proj(self.norm(y, z))

    def _scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Each group of B and C with its heads: a scan of its own."""
        table = routes("forward", (1, x.shape[1]), x.device)
        heads = HeadScan(x.shape[-1] // self.groups, self.scan.head_width)
        parameters = zip(*(p.chunk(self.groups) for p in self.scan.parameters()), strict=True)
        inputs = zip(*(t.chunk(self.groups, dim=-1) for t in (x, dt, B, C)), strict=True)
        names = [name for name, _ in self.scan.named_parameters()]
        parts = [
            functional_call(heads, dict(zip(names, numbers, strict=True)), (*tensors, table))
            for numbers, tensors in zip(parameters, inputs, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    def _blocks(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        s = self.scan
        dt = F.softplus(dt + s.dt_bias)  # (B, L, h)
        X = x.unflatten(-1, (s.heads, s.head_width))
        B, C = (t.unflatten(-1, (self.groups, -1)) for t in (B, C))  # (B, L, g, N)
        Y = ssd_chunked(X * dt[..., None], -torch.exp(s.A_log) * dt, B, C, chunk=self.block)
        assert isinstance(Y, Tensor)
        return (Y + X * s.D[:, None]).flatten(-2)
