"""Mamba-2's layer: both ways of computing it agree."""

from __future__ import annotations

import torch

from medmamba.networks.published.mamba2 import Mamba2


def test_mamba2_in_blocks_equals_its_scan() -> None:
    torch.manual_seed(0)
    layer = Mamba2(16, state_size=8, head_width=8, groups=2, block=8)
    x = torch.randn(2, 21, 16)
    scanned = layer(x)
    layer.chunked = True
    torch.testing.assert_close(layer(x), scanned, rtol=1e-4, atol=1e-5)
