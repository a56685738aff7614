"""Mamba-3 in its planned form: both ways through the flattened map in the U-Net frame.

Source: Lahoti et al. 2026, Mamba-3 (arXiv:2603.15569). The operator, with its equations: medmamba.kernels.mamba3.

Glossary: L tokens, d width, E = expand * d inner width, h heads of p channels, N state size, m = N / 4 pairs that turn.

    [z | x | B | C | dt | a | mix | angle] = in_proj(tokens)        no convolution, as published
    dt = softplus(dt + bias);  log decay = -dt * f(a);  turn = pi * tanh(angle) * dt,  per head
    B, C = RMSNorm(B), RMSNorm(C), plus a bias per head
    out = out_proj(SiLU(z) * (scan there + scan back))
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.kernels import mamba3_scan
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.residual import PreNorm, RMSNorm
from medmamba.networks.blocks.scan_core import ScanModule, at_least_float32, count_updates, initial_dt_bias
from medmamba.networks.planned.registry import Count, Rate, WidthRatio, unet_family
from medmamba.networks.planned.stage_mixers import routes_per_stage
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.networks.planned.vim import FlatMixer
from medmamba.plans.families import route_count

LEAST_DECAY = 1e-2
"""Smallest rate of decay, so that the scan's division by it stays exact; the original's is 1e-4."""


class TrapezoidalScan(ScanModule):
    """Selection, decay, turns and skip of Mamba-3, per head, shared by the directions."""

    def __init__(self, width: int, heads: int, state_size: int, directions: int) -> None:
        super().__init__()
        self.heads, self.state_size, self.directions = heads, state_size, directions
        self.parts = [state_size, state_size, heads, heads, heads, state_size // 4]
        self.select = Linear(width, sum(self.parts), bias=False)
        self.dt_bias = nn.Parameter(initial_dt_bias(heads))
        self.B_bias = nn.Parameter(torch.ones(heads, state_size))
        self.C_bias = nn.Parameter(torch.ones(heads, state_size))
        self.B_norm, self.C_norm = RMSNorm(state_size), RMSNorm(state_size)
        self.D = nn.Parameter(torch.ones(heads))

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """tokens (B, L, d) select, x (B, L, E) is scanned: (B, L, E), at least in float32."""
        B, C, dt, a, mix, angle = map(at_least_float32, self.select(tokens).split(self.parts, dim=-1))
        dt = F.softplus(dt + at_least_float32(self.dt_bias))  # (B, L, h)
        rate = a.clamp_min(0) + 1 / (1 - a.clamp_max(0))
        turn = torch.pi * torch.tanh(angle).unsqueeze(2) * dt.unsqueeze(-1)  # (B, L, h, m)
        B = self.B_norm(B).unsqueeze(2) + at_least_float32(self.B_bias)
        C = self.C_norm(C).unsqueeze(2) + at_least_float32(self.C_bias)
        x = at_least_float32(x).unflatten(-1, (self.heads, -1)).unsqueeze(3)  # (B, L, h, 1, p)
        inputs = [x, B.unsqueeze(3), C.unsqueeze(3), dt, -dt * rate.clamp(min=LEAST_DECAY), mix.sigmoid(), turn]
        D = at_least_float32(self.D)
        if self.directions == 2:  # the way back is the flipped sequence in further heads
            inputs, D = [torch.cat([value, value.flip(1)], 2) for value in inputs], torch.cat([D, D])
        x, B, C, dt, decay, mix, turn = inputs
        count_updates(x.numel() * self.state_size)
        y = mamba3_scan(x, B, C, dt, decay, mix, turn, D, backend=self.scan_backend).flatten(3)  # (B, L, h or 2 h, p)
        if self.directions == 2:
            there, back = y.chunk(2, dim=2)
            y = there + back.flip(1)
        return y.flatten(2)


class Mamba3Mixer(nn.Module):
    """Token mixer (B, L, d) to (B, L, d); ``use_scan=False`` leaves the scan and its parameters out (identity).

    ``head_width`` is p, or the next smaller divisor of E.
    """

    def __init__(
        self,
        width: int,
        *,
        state_size: int = 16,
        expand: float = 1.0,
        head_width: int = 16,
        directions: int = 2,
        use_scan: bool = True,
    ) -> None:
        super().__init__()
        inner = int(expand * width)
        head_width = max(p for p in range(1, min(head_width, inner) + 1) if inner % p == 0)
        self.in_proj = Linear(width, 2 * inner, bias=False)
        self.scan = TrapezoidalScan(width, inner // head_width, state_size, directions) if use_scan else None
        self.out_proj = Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        z, x = self.in_proj(tokens).chunk(2, dim=-1)  # (B, L, E) each
        y = x if self.scan is None else self.scan(tokens, x)
        return self.out_proj((y * F.silu(z)).to(z.dtype))


@unet_family("mamba3")
def mamba3(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 16,
    expand: WidthRatio = 1.0,
    head_width: Count = 16,
    schedule: str = "constant",
    use_scan: bool = True,
) -> BlockFactory:
    """Mamba-3 there and back through the flattened map (arXiv:2603.15569).

    Args:
        state_size, expand: of the scans, as for ``vm_unet``; a quarter of the states' pairs turn.
        head_width: channels per scan head, at least.
        schedule: as for ``vm_unet``; a stage with one route scans forward only.
        use_scan: False leaves the scans out.
    """
    names = routes_per_stage(topology, "bidirectional", schedule)

    def block(stage: int, index: int, width: int) -> nn.Module:
        ways = route_count(names[stage], topology.spatial_dims)
        options = {"state_size": state_size, "head_width": head_width, "directions": ways, "use_scan": use_scan}
        mixer = Mamba3Mixer(width, expand=expand, **options)  # type: ignore[arg-type]
        return PreNorm(RMSNorm(width), FlatMixer(mixer), rate(stage, index))

    return block
