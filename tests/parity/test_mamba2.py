"""Mamba-2's layer, computed in blocks, equals its scan along a route."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from medmamba.networks.routes import routes

from .published_mamba2 import Mamba2


def test_mamba2_in_blocks_equals_its_scan() -> None:
    torch.manual_seed(0)
    layer = Mamba2(16, state_size=8, head_width=8, block=8)
    x = torch.randn(2, 21, 16)
    z, mixed, dt = layer.in_proj(x).split([32, 48, 4], dim=-1)
    u, B, C = F.silu(layer.conv1d(mixed.mT)[..., :21].mT).split([32, 8, 8], dim=-1)
    y = layer.scan(u, dt, B, C, routes("forward", (1, 21)))
    torch.testing.assert_close(layer(x), layer.out_proj(layer.norm(y, z)), rtol=1e-4, atol=1e-5)
