"""Residual branches with stochastic depth: dropped at random in training (Huang et al. 2016, arXiv:1603.09382)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medmamba.errors import ConfigError


def rising_rates(largest: float, count: int) -> list[float]:
    """Stochastic-depth rates of ``count`` blocks: 0 at the first, rising evenly to ``largest`` at the last."""
    return [largest * i / max(count - 1, 1) for i in range(count)]


class DropPath(nn.Module):
    """Stochastic depth: during training a sample's branch is dropped with probability ``rate``, the rest scaled up."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ConfigError(f"Stochastic depth rate must lie in [0, 1), got {rate}.")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.empty(x.shape[0], *[1] * (x.ndim - 1), device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        """The rate, as printed in the description of a network."""
        return f"rate={self.rate}"


class PreNorm(nn.Module):
    """x + DropPath(mixer(norm(x)))."""

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mixer, self.drop_path = norm, mixer, DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))
