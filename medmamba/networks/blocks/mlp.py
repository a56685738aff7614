"""The two-layer MLP of transformer blocks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.linear import Linear


class MLP(nn.Module):
    """Linear, exact GELU, Linear, on the last axis."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
