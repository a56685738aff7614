"""VM-UNet's building blocks: the gated scan mixer and its residual block, in 2D and 3D.

Source: Ruan and Xiang 2024, VM-UNet (arXiv:2402.02491), figure 2; Liu et al. 2024, VMamba (arXiv:2401.10166).

Glossary: C width of the block, E = expand * C inner width, N state size, K routes; (B, *S, C) is a channels-last map
with S = (H, W) or (D, H, W). The depthwise convolution, called ``conv2d`` in published weights, is ``conv`` here,
because it has three axes in a volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.scan_core import ScanCore, auto_dt_rank
from medmamba.networks.routes import route_count, routes

CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}


def channels_first(x: Tensor) -> Tensor:
    """(B, *S, C) seen as (B, C, *S); no copy."""
    return x.movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, *S) seen as (B, *S, C); a copy only if the memory was channels-first."""
    return x.movedim(1, -1).contiguous()


class _NeverHalf:
    """A convolution that autocast on a CPU leaves in float32: torch's grouped ones are several times slower in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._conv_forward(x, self.weight, self.bias)  # type: ignore[attr-defined]
        return self._outside_autocast(x)

    @torch.jit.unused
    def _outside_autocast(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias  # type: ignore[attr-defined]
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self._conv_forward(x, weight, bias)  # type: ignore[attr-defined]
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(x.float(), weight, bias)  # type: ignore[attr-defined]


class DepthwiseConv2d(_NeverHalf, nn.Conv2d):
    """See :func:`depthwise`."""


class DepthwiseConv3d(_NeverHalf, nn.Conv3d):
    """See :func:`depthwise`."""


DEPTHWISE: dict[int, Callable[..., nn.Module]] = {2: DepthwiseConv2d, 3: DepthwiseConv3d}


def depthwise(width: int, kernel: Sequence[int], bias: bool = True) -> nn.Module:
    """Convolution of each channel with itself, size kept."""
    padding = tuple(k // 2 for k in kernel)
    return DEPTHWISE[len(kernel)](width, width, tuple(kernel), padding=padding, groups=width, bias=bias)


def per_axis(kernel: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """One number for every axis, or one for each."""
    return (kernel,) * spatial_dims if isinstance(kernel, int) else tuple(kernel)


class SS2D(nn.Module):
    """Gated multi-route scan mixer, (B, *S, C) to (B, *S, C).

    [x | z] = in_proj(input);  x = SiLU(depthwise(x));  out_proj( LayerNorm(scan(x)) * SiLU(z) ).

    Args:
        width: C.
        expand: E / C.
        state_size: N.
        kernel: edge of the depthwise convolution.
        bias, conv_bias: whether in_proj and out_proj, and the convolution, have one.
        route: name of the route set (see ``routes.py``).
        dt_rank: R; ceil(C / 16) if None.
        use_scan: False leaves the scan out (identity) and keeps everything around it: the control network.
    """

    def __init__(
        self,
        width: int,
        *,
        spatial_dims: int = 2,
        expand: float = 2.0,
        state_size: int = 16,
        kernel: int | tuple[int, ...] = 3,
        bias: bool = False,
        conv_bias: bool = True,
        route: str = "cross",
        dt_rank: int | None = None,
        use_scan: bool = True,
    ) -> None:
        super().__init__()
        inner, rank = int(expand * width), dt_rank or auto_dt_rank(width)
        kernels = per_axis(kernel, spatial_dims)
        self.route = route
        self.in_proj = Linear(width, 2 * inner, bias=bias)
        self.conv = depthwise(inner, kernels, bias=conv_bias)
        self.scan = ScanCore(inner, route_count(route, spatial_dims), state_size, rank) if use_scan else None
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, *S, E) each
        x = F.silu(channels_last(self.conv(channels_first(x))))
        if self.scan is not None:
            y = self.scan(x.flatten(1, -2), routes(self.route, grid, x.device))  # (B, L, E)
            x = y.unflatten(1, grid)
        return self.out_proj(self.out_norm(x) * F.silu(z))


class VSSBlock(nn.Module):
    """x + DropPath(mixer(LayerNorm(x))), channels-last; the whole of VM-UNet's block, there is no feed-forward part.

    The stand-alone block of the original has eps 1e-6 in its norm; inside the original network every norm has 1e-5.
    """

    def __init__(self, width: int, mixer: nn.Module, *, drop_path: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.self_attention = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.self_attention(self.ln_1(x)))


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
        return f"rate={self.rate}"
