"""MHS-VM in its planned form: channels split into heads, each scanned along its own routes, routes fused by a gate.

Source: Ji 2024, MHS-VM: Multi-Head Scanning in Parallel Subspaces for Vision Mamba (arXiv:2406.05992), and its code.

Glossary: C width, n heads, S = floor(C / n) width of a head, K routes of a head, y_k what route k returned, t threshold
of the fusion (``gfu_t`` in the published code).

    heads:   C snake (boustrophedon), X diagonal snake, S spiral, Z raster; each has base orders and their reverses
    fusion:  cv = std_k(y) / (mean_k(y - min_k y) + 1e-5);   out = sum_k(y) * ReLU(cv - t)

With K = 4 routes cv lies in [2/3, 2] (Cauchy-Schwarz), in general in [sqrt(K)/(K-1), sqrt(K)]: a threshold below the
lower end closes nothing and is a positive factor; only a larger one screens routes out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.errors import ConfigError
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import depthwise, on_channels_last
from medmamba.networks.blocks.scan_core import ScanCore, at_least_float32, auto_dt_rank
from medmamba.networks.blocks.vss import VSSBlock
from medmamba.networks.planned.registry import Count, NotNegative, Rate, unet_family
from medmamba.networks.planned.stage_mixers import routes_per_stage
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.networks.routes import routes
from medmamba.plans.families import route_count

HEADS = {"C": "snake", "X": "diagonal", "S": "spiral", "Z": "raster"}  # in the published order
FUSION_EPS = 1e-5


def fuse_routes(y: Tensor, threshold: float, dim: int) -> Tensor:
    """Sum over the routes along ``dim``, weighted per value by how much the routes disagree (a single one by 1)."""
    y = at_least_float32(y)
    if y.shape[dim] == 1:
        return y.squeeze(dim)
    centred = y - y.mean(dim, keepdim=True)
    # torch's own std takes 20 times as long over so few routes. The smallest float keeps the root's slope finite.
    variance = centred.square().sum(dim) / (y.shape[dim] - 1)
    std = variance.clamp_min(torch.finfo(y.dtype).tiny).sqrt()
    spread = std / ((y - y.amin(dim, keepdim=True)).mean(dim) + FUSION_EPS)
    return y.sum(dim) * F.relu(spread - threshold)


class ScanHead(nn.Module):
    """One head: (B, *S, width) scanned along one family of routes, then fused."""

    def __init__(
        self, width: int, route: str, spatial_dims: int, state_size: int, threshold: float, dt_rank: int | None = None
    ) -> None:
        super().__init__()
        self.route, self.threshold = route, threshold
        self.scan = ScanCore(width, route_count(route, spatial_dims), state_size, dt_rank or auto_dt_rank(width))

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        table = routes(self.route, grid, x.device)
        y = self.scan(x.flatten(1, -2), table, merge=False)  # (B, L, K, S)
        return fuse_routes(y, self.threshold, dim=2).unflatten(1, grid)


class MultiHeadScan(nn.Module):
    """(B, *S, C) to (B, *S, C): project to heads, scan each, join, normalise and mix.

    Args:
        heads: which routes, by letter, e.g. "CXS" or "CXSZ".
        routes: the first so many of each head's routes; all if None.
        projection: normalise and mix the joined heads; without it C must be divisible by the number of heads.
    """

    def __init__(
        self,
        width: int,
        *,
        spatial_dims: int = 2,
        heads: str = "CXS",
        routes: int | None = None,
        threshold: float = 0.0,
        projection: bool = True,
        state_size: int = 16,
        dt_rank: int | None = None,
        use_scan: bool = True,
    ) -> None:
        super().__init__()
        if not heads or any(letter not in HEADS for letter in heads) or len(set(heads)) != len(heads):
            raise ConfigError(f"MHS heads must be different letters out of {''.join(HEADS)}, got {heads!r}.")
        self.head_width = width // len(heads)
        joined = self.head_width * len(heads)
        if joined == 0 or (joined != width and not projection):
            nearest = max(width // len(heads), 1) * len(heads)
            raise ConfigError(f"{width} channels do not divide among {len(heads)} MHS heads; use {nearest}.")
        self.x_ssproj = Linear(width, joined, bias=False)
        self.heads = nn.ModuleDict()
        if use_scan:
            for letter in heads:
                route = HEADS[letter] if routes is None else f"{HEADS[letter]}:{routes}"
                self.heads[letter] = ScanHead(self.head_width, route, spatial_dims, state_size, threshold, dt_rank)
        self.cat_norm = nn.LayerNorm(joined) if projection else None
        self.y_proj = Linear(joined, width, bias=False) if projection else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.x_ssproj(x)
        if self.heads:
            parts = x.split(self.head_width, dim=-1)
            x = torch.cat([head(part) for head, part in zip(self.heads.values(), parts, strict=True)], dim=-1)
        if self.cat_norm is not None and self.y_proj is not None:
            x = self.y_proj(self.cat_norm(x))
        return x


class MHSMixer(nn.Module):
    """MHS-VM's block part: depthwise convolution, multi-head scan, LayerNorm, gated (VSSGate) or not (VSSUnGated)."""

    def __init__(self, width: int, mhs: MultiHeadScan, *, kernel: Sequence[int] = (3, 3), gated: bool = True) -> None:
        super().__init__()
        self.in_proj = Linear(width, 2 * width, bias=False) if gated else None
        self.conv = depthwise(width, kernel)
        self.mhs = mhs
        self.out_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        z = None
        if self.in_proj is not None:
            x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, *S, C) each
        x = self.out_norm(self.mhs(F.silu(on_channels_last(self.conv, x))))
        return x if z is None else x * F.silu(z)


@unet_family("mhs_vm")
def mhs_vm(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 8,
    heads: str = "".join(HEADS),
    schedule: str = "constant",
    threshold: NotNegative = 0.0,
    gated: bool = True,
    use_scan: bool = True,
) -> BlockFactory:
    """MHS-VM's multi-head scan blocks (arXiv:2406.05992).

    Args:
        state_size: N of the scans.
        heads: letters of the heads: C snake, X diagonal, S spiral, Z raster.
        schedule: of the routes of each head, as for ``vm_unet``.
        threshold: of the fusion of a head's routes; see the top of this file for its effective range.
        gated: with the gate beside the scan (VSSGate) or without (VSSUnGated).
        use_scan: False leaves scans and fusion out.
    """
    dims = topology.spatial_dims
    names = routes_per_stage(topology, HEADS["C"], schedule)  # every head has as many

    def block(stage: int, index: int, width: int) -> nn.Module:
        mhs = MultiHeadScan(
            width,
            spatial_dims=dims,
            heads=heads,
            routes=route_count(names[stage], dims),
            threshold=threshold,
            state_size=state_size,
            use_scan=use_scan,
        )
        mixer = MHSMixer(width, mhs, kernel=topology.kernels[stage], gated=gated)
        return VSSBlock(width, mixer, drop_path=rate(stage, index))

    return block
