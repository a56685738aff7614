"""Mamba-2's scan: heads with one decay each, along routes.

Source: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060), section 7. The layer: ``published/mamba2.py``.

Glossary: L tokens, E inner width, h heads of p channels, N state size, K routes.

    S_i = exp(A_i) S_{i-1} + X_i (x) B_i,   Y_i = S_i C_i        per head: S (p, N), A one number per token
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.residual import RMSNorm
from medmamba.networks.blocks.scan_core import ScanModule, at_least_float32, initial_dt_bias, scanned


class GatedRMSNorm(RMSNorm):
    """RMSNorm(y * SiLU(z)) over all channels: the gate comes before the norm."""

    def forward(self, y: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]  # needs its gate
        return super().forward(y * F.silu(z))


class HeadScan(ScanModule):
    """A selective scan whose channels share step size, decay and skip within a head, with their parameters."""

    def __init__(self, inner: int, head_width: int, directions: int = 1) -> None:
        super().__init__()
        self.heads, self.head_width = inner // head_width, head_width
        shape = (self.heads,) if directions == 1 else (directions, self.heads)
        self.dt_bias = nn.Parameter(initial_dt_bias(*shape))
        self.A_log = nn.Parameter(torch.empty(shape).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, table: Tensor) -> Tensor:
        """x (B, L, E), dt (B, L, h), B and C (B, L, N), routes (K, L): (B, L, E), summed over the routes."""
        K, p = len(table), self.head_width
        A, D, bias = (
            at_least_float32(t).reshape(K, self.heads).repeat_interleave(p, dim=1)  # (K, E)
            for t in (-torch.exp(self.A_log), self.D, self.dt_bias)
        )
        steps = dt.repeat_interleave(p, dim=-1)[:, :, None].expand(-1, -1, K, -1)  # (B, L, K, E)
        return scanned(
            x.contiguous(),
            steps.contiguous(),
            A[..., None].expand(-1, -1, B.shape[-1]).contiguous(),
            B[:, :, None].expand(-1, -1, K, -1).contiguous(),
            C[:, :, None].expand(-1, -1, K, -1).contiguous(),
            D=D.contiguous(),
            dt_bias=bias.contiguous(),
            routes=table,
            backend=self.scan_backend,
        )
