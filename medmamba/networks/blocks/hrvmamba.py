"""HRVMamba's DVSS block: multi-kernel depthwise convolutions, a scan behind a deformable convolution, an MLP.

Source: Zhang et al. 2024, HRVMamba (arXiv:2410.03174), section 3. Width C:

    x = x + GELU(shuffle(depthwise 3 | 5 | 7 | 9 (LN(x))))      four parts of the channels, one kernel each
    x = x + scan(LN(x))                                        in_proj, deformable convolution, SiLU, scan, LN, out_proj
    x = x + MLP(LN(x))

The variant "se_lpu" (nano and tiny) adds a local perception unit, a depthwise 3x3 convolution, before the first and
before the last part and a squeeze-and-excitation gate after the scan. The released source cannot run; the parameter
counts of the paper fit a deformable convolution without its two pointwise projections, the default here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.blocks.deformable import DeformableConv
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import channels_first, channels_last, depthwise, per_axis
from medmamba.networks.blocks.residual import MLP, DropPath
from medmamba.networks.blocks.scan_core import ScanCore, auto_dt_rank
from medmamba.networks.routes import routes
from medmamba.plans.route_sets import route_count

LOCAL_KERNELS = {2: (3, 5, 7, 9), 3: (3, 3, 5, 5)}  # 3D is ours: cubes of 7 and 9 cost 343 and 729 taps
SHUFFLE = 4  # parts of the channels, one kernel each


class SqueezeExcite(nn.Module):
    """Channels weighted by a two-layer MLP of their means: (B, *S, C) to itself."""

    def __init__(self, width: int, reduction: int = 8) -> None:
        super().__init__()
        narrow, widen = Linear(width, width // reduction, bias=False), Linear(width // reduction, width, bias=False)
        self.fc = nn.Sequential(narrow, nn.ReLU(), widen, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc(x.flatten(1, -2).mean(1))  # (B, C)
        return x * weight.reshape(len(x), *[1] * (x.ndim - 2), -1)


class DSS(nn.Module):
    """Ungated scan mixer behind a deformable convolution, (B, *S, C) to itself.

    Args:
        width: C; E = expand * C is the inner width; the convolution has as many groups as the step size has ranks.
        local: the convolution before the scan, (B, *S, E) to itself; deformable if None.
        squeeze_excite: gate the channels after the scan.
        dt_rank: R; ceil(C / 16) if None.
    """

    def __init__(
        self,
        width: int,
        *,
        spatial_dims: int = 2,
        expand: float = 2.0,
        state_size: int = 1,
        route: str = "cross",
        local: nn.Module | None = None,
        pointwise: bool = False,
        squeeze_excite: bool = False,
        dt_rank: int | None = None,
        use_scan: bool = True,
    ) -> None:
        super().__init__()
        inner, rank = int(expand * width), dt_rank or auto_dt_rank(width)
        self.route = route
        self.in_proj = Linear(width, inner, bias=False)
        self.conv = local or DeformableConv(
            inner,
            rank,
            spatial_dims=spatial_dims,
            offset_kernel=3 if width % 80 == 0 else None,  # as in the base model
            pointwise=pointwise,
            output_bias=False,
        )
        self.scan = ScanCore(inner, route_count(route, spatial_dims), state_size, rank) if use_scan else None
        self.out_norm = nn.LayerNorm(inner)
        self.se = SqueezeExcite(inner) if squeeze_excite else None
        self.out_proj = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        x = F.silu(self.conv(self.in_proj(x)))  # (B, *S, E)
        if self.scan is not None:
            x = self.scan(x.flatten(1, -2), routes(self.route, grid, x.device)).unflatten(1, grid)
        x = self.out_norm(x)
        return self.out_proj(x if self.se is None else self.se(x))


class DVSSBlock(nn.Module):
    """(B, *S, C) to (B, *S, C), C divisible by 4; see the top of this file.

    Args:
        width: C.
        mixer: the scan mixer.
        se_lpu: with the local perception units (the gate is the mixer's own).
        kernels: edges of the four depthwise convolutions, one number or one per axis each.
    """

    def __init__(
        self,
        width: int,
        mixer: nn.Module,
        *,
        spatial_dims: int = 2,
        mlp_ratio: float = 2.0,
        se_lpu: bool = False,
        drop_path: float = 0.0,
        kernels: Sequence[int | Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if width % SHUFFLE:
            nearest = max(SHUFFLE, round(width / SHUFFLE) * SHUFFLE)
            raise ConfigError(f"HRVMamba's blocks need channels divisible by {SHUFFLE}, got {width}; use {nearest}.")
        kernels = kernels or LOCAL_KERNELS[spatial_dims]
        part = width // SHUFFLE
        self.norm0 = nn.LayerNorm(width)
        self.conv = nn.ModuleList(depthwise(part, per_axis(k, spatial_dims)) for k in kernels)
        self.norm, self.op = nn.LayerNorm(width), mixer
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, int(mlp_ratio * width))
        self.cpe1 = depthwise(width, (3,) * spatial_dims) if se_lpu else None
        self.cpe2 = depthwise(width, (3,) * spatial_dims) if se_lpu else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        # The original's local perception unit feeds only the branch; the residual is the input itself.
        seen = x if self.cpe1 is None else x + _convolve(self.cpe1, x)
        x = x + self.drop_path(F.gelu(self._local(self.norm0(seen))))
        x = x + self.drop_path(self.op(self.norm(x)))
        if self.cpe2 is not None:
            x = x + _convolve(self.cpe2, x)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _local(self, x: Tensor) -> Tensor:
        """One kernel per quarter of the channels, then the quarters interleaved."""
        parts = [_convolve(conv, part) for conv, part in zip(self.conv, x.chunk(SHUFFLE, dim=-1), strict=True)]
        return torch.stack(parts, dim=-1).flatten(-2)


def _convolve(convolution: nn.Module, x: Tensor) -> Tensor:
    return channels_last(convolution(channels_first(x)))
