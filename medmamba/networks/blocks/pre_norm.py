"""A residual branch whose norm comes before its mixer."""

from __future__ import annotations

from torch import Tensor, nn

from medmamba.networks.blocks.drop_path import DropPath


class PreNorm(nn.Module):
    """x + DropPath(mixer(norm(x)))."""

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mixer, self.drop_path = norm, mixer, DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))
