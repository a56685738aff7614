"""Window attention reaches the tokens of its window and no other."""

from __future__ import annotations

import torch

from medmamba.networks.blocks.attention import WindowAttention


def test_windows_attend_only_inside_their_region() -> None:
    torch.manual_seed(0)
    for shifted in (False, True):
        attention = WindowAttention(8, 2, (4, 4), shifted=shifted)
        x = torch.randn(1, 7, 9, 8, requires_grad=True)  # padded to 8 x 12
        attention(x)[0, 0, 0].sum().backward()
        seen = x.grad.abs().sum(-1)[0] > 0
        edge = 2 if shifted else 4  # the shifted corner window is what the roll leaves of it
        assert seen[:edge, :edge].all()
        assert seen.sum() == edge * edge
