"""Parts of residual blocks: norms, the pre-norm branch with stochastic depth (arXiv:1603.09382), the two-layer MLP."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.scan_core import at_least_float32


def truncated_normal(network: nn.Module, *kinds: type[nn.Module]) -> None:
    """Initial weights of the modules of these kinds truncated normal, standard deviation 0.02; biases zero."""
    for module in network.modules():
        if isinstance(module, kinds):
            nn.init.trunc_normal_(module.get_parameter("weight"), std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.get_parameter("bias"))


def rising_rates(largest: float, count: int) -> list[float]:
    """Stochastic-depth rates of ``count`` blocks: 0 at the first, rising evenly to ``largest`` at the last."""
    return [largest * i / max(count - 1, 1) for i in range(count)]


class DropPath(nn.Module):
    """Stochastic depth: during training a sample's branch is dropped with probability ``rate``, the rest scaled up."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.empty(x.shape[0], *[1] * (x.ndim - 1), device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class PreNorm(nn.Module):
    """x + DropPath(mixer(norm(x)))."""

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mixer, self.drop_path = norm, mixer, DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))


class MLP(nn.Module):
    """The MLP of transformer blocks: Linear, exact GELU, Linear, on the last axis."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(at_least_float32(x), x.shape[-1:], self.weight, self.eps)
