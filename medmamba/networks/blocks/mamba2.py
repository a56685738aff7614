"""Mamba-2: the plain layer of state-space duality, and its heads along routes.

Source: Dao and Gu 2024, Transformers are SSMs (arXiv:2405.21060), section 7.

Glossary: L tokens, h heads of p channels, N state size, g groups that share B and C, q block length.

    S_i = exp(A_i) S_{i-1} + X_i (x) B_i,   Y_i = S_i C_i        per head: S (p, N), A one number per token

which is the selective scan with one decay per head, and in blocks of q tokens a few matrix products
(``medmamba.kernels.ssd_chunked``). Both are here: the scan follows any routes, the blocks one sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.kernels import ssd_chunked
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.scan_core import ScanModule, at_least_float32, initial_dt_bias, scanned
from medmamba.networks.routes import routes


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * SiLU(z)) over all channels: the gate comes before the norm."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return F.rms_norm(at_least_float32(y * F.silu(z)), y.shape[-1:], self.weight, self.eps)


class HeadScan(ScanModule):
    """Step bias, decay and skip per head, and the scan with them along any routes.

    One decay per head is a selective scan whose channels share theirs, so the routed scan computes it; each group of B
    and C is one call.
    """

    def __init__(self, inner: int, head_width: int, groups: int = 1, directions: int = 1) -> None:
        super().__init__()
        heads = inner // head_width
        self.heads, self.head_width, self.groups = heads, head_width, groups
        shape = (heads,) if directions == 1 else (directions, heads)
        self.dt_bias = nn.Parameter(initial_dt_bias(*shape))
        self.A_log = nn.Parameter(torch.empty(shape).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, table: Tensor) -> Tensor:
        """x (B, L, E), dt (B, L, heads), B and C (B, L, g*N), routes (K, L): (B, L, E), summed over the routes."""
        K, p, g = len(table), self.head_width, self.groups
        A, D, bias = (
            at_least_float32(t).reshape(K, self.heads) for t in (-torch.exp(self.A_log), self.D, self.dt_bias)
        )
        A, D, bias = (t.repeat_interleave(p, dim=1) for t in (A, D, bias))  # (K, E)
        steps = dt.repeat_interleave(p, dim=-1)[:, :, None].expand(-1, -1, K, -1)  # (B, L, K, E)
        N = B.shape[-1] // g
        outs = []
        for part in range(g):
            channels = slice(part * x.shape[-1] // g, (part + 1) * x.shape[-1] // g)
            states = slice(part * N, (part + 1) * N)
            outs.append(
                scanned(
                    x[..., channels].contiguous(),
                    steps[..., channels].contiguous(),
                    A[:, channels, None].expand(-1, -1, N).contiguous(),
                    B[:, :, None, states].expand(-1, -1, K, -1).contiguous(),
                    C[:, :, None, states].expand(-1, -1, K, -1).contiguous(),
                    D=D[:, channels].contiguous(),
                    dt_bias=bias[:, channels].contiguous(),
                    routes=table,
                    backend=self.scan_backend,
                )
            )
        return outs[0] if g == 1 else torch.cat(outs, dim=-1)


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
        self.scan = HeadScan(inner, head_width, groups)
        self.norm = GatedRMSNorm(inner)
        self.out_proj = Linear(inner, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        z, mixed, dt = self.in_proj(tokens).split([self.parts[0], sum(self.parts[1:4]), self.parts[4]], dim=-1)
        mixed = F.silu(self.conv1d(mixed.mT)[..., :length].mT)
        x, B, C = mixed.split(self.parts[1:4], dim=-1)
        if self.chunked:
            y = self._blocks(x, dt, B, C)
        else:
            y = self.scan(x.contiguous(), dt, B, C, routes("forward", (1, length), tokens.device))
        return self.out_proj(self.norm(y, z))

    def _blocks(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        s = self.scan
        dt = F.softplus(dt + s.dt_bias)  # (B, L, h)
        X = x.unflatten(-1, (s.heads, s.head_width))
        B, C = (t.unflatten(-1, (s.groups, -1)) for t in (B, C))  # (B, L, g, N)
        backend = "torch" if s.scan_backend == "cpp" else s.scan_backend  # the CPU has BLAS's products
        Y = ssd_chunked(X * dt[..., None], -torch.exp(s.A_log) * dt, B, C, chunk=self.block, backend=backend)
        assert isinstance(Y, Tensor)
        return (Y + X * s.D[:, None]).flatten(-2)
