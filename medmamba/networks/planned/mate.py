"""LinGen's MATE blocks in the U-Net frame: a scan of linear cost for distant tokens, window attention for near ones.

Source: Wang et al. 2025, LinGen (arXiv:2412.09856), figures 2 to 5; docs/reference/network-mate.md lists our
interpretations. Mamba-2: Dao and Gu 2024 (arXiv:2405.21060), section 7.

    y = LN(x);  x = x + MA(y) + TE(y);  x = x + MLP(LN(x))          MA: Mamba-2; TE: attention in windows

Glossary: L tokens, C width, E inner width, h heads of p channels, N state size, K routes, r edge of the review grid.
Mamba-2 has one decay per head, A one number per token:

    S_i = exp(A_i) S_{i-1} + X_i (x) B_i,   Y_i = S_i C_i        per head: S (p, N)
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.linear import Linear, linear
from medmamba.networks.blocks.maps import channels_first, depthwise, on_channels_last
from medmamba.networks.blocks.residual import MLP, DropPath, RMSNorm
from medmamba.networks.blocks.scan_core import ScanModule, at_least_float32, initial_dt_bias, scanned
from medmamba.networks.planned.registry import Count, CountOrZero, Edge, Rate, WidthRatio, unet_family
from medmamba.networks.planned.stage_mixers import routes_per_stage, window_attentions
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.networks.routes import routes
from medmamba.plans.families import route_count

POOL: dict[int, Callable[..., Tensor]] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class GatedRMSNorm(RMSNorm):
    """RMSNorm(y * SiLU(z)) over all channels: the gate comes before the norm."""

    def forward(self, y: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]  # the gate is required
        return super().forward(y * F.silu(z))


class HeadScan(ScanModule):
    """A selective scan whose channels share step size, decay and skip within a head, with their parameters."""

    def __init__(self, inner: int, head_width: int, directions: int = 1) -> None:
        super().__init__()
        self.heads, self.head_width = inner // head_width, head_width
        shape = (self.heads,) if directions == 1 else (directions, self.heads)
        self.dt_bias = nn.Parameter(initial_dt_bias(*shape))
        self.A_log = nn.Parameter(torch.empty(shape).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, table: Tensor) -> Tensor:
        """x (B, L, E), dt (B, L, h), B and C (B, L, N), routes (K, L): (B, L, E), summed over the routes."""
        K, p = len(table), self.head_width
        A, D, bias = (
            at_least_float32(t).reshape(K, self.heads).repeat_interleave(p, dim=1)  # (K, E)
            for t in (-torch.exp(self.A_log), self.D, self.dt_bias)
        )
        steps = dt.repeat_interleave(p, dim=-1)[:, :, None].expand(-1, -1, K, -1)  # (B, L, K, E)
        return scanned(
            x.contiguous(),
            steps.contiguous(),
            A[..., None].expand(-1, -1, B.shape[-1]).contiguous(),
            B[:, :, None].expand(-1, -1, K, -1).contiguous(),
            C[:, :, None].expand(-1, -1, K, -1).contiguous(),
            D=D.contiguous(),
            dt_bias=bias.contiguous(),
            routes=table,
            backend=self.scan_backend,
        )


class MATEMixer(nn.Module):
    """The MA branch, (B, *S, C) to itself: Mamba-2 along one rotary-major order.

    Review tokens, a pooled overview of the map, come before the sequence in every direction; their outputs are dropped.

    Args:
        head_width: p, or the next smaller divisor of E.
        layer: number of the layer, which decides its rotary order.
        review: r; 0 for no review tokens.
        use_scan: False leaves the scan and all that only serves it out.
    """

    def __init__(
        self,
        width: int,
        kernel: Sequence[int] = (3, 3, 3),
        *,
        state_size: int = 16,
        expand: float = 1.0,
        head_width: int = 8,
        layer: int = 0,
        review: int = 4,
        directions: int = 2,
        use_scan: bool = True,
    ) -> None:
        super().__init__()
        inner = int(expand * width)
        head_width = max(p for p in range(1, min(head_width, inner) + 1) if inner % p == 0)
        pairs = route_count("rotary", len(kernel)) // 2
        first = 2 * (layer % pairs)
        self.route = f"rotary:{first}-{first + directions}"
        self.inner, self.state_size = inner, state_size
        self.review_size = review if use_scan else 0
        self.in_proj = Linear(width, 2 * inner, bias=False)
        self.conv = depthwise(inner, kernel)
        self.scan: SelectiveHeads | None = None
        if use_scan:
            self.scan = SelectiveHeads(width, inner, head_width, state_size, directions, review=review > 0)
        self.norm = GatedRMSNorm(inner)
        self.out_proj = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        z, u = self.in_proj(x).chunk(2, dim=-1)  # (B, *S, E) each
        u = F.silu(on_channels_last(self.conv, u))
        if self.scan is not None:
            tokens, y = x.flatten(1, -2), u.flatten(1, -2)
            table = routes(self.route, grid, x.device)
            if self.review_size:
                review_grid = tuple(min(self.review_size, -(-n // 2)) for n in grid)  # at most half the map's
                seen = self.scan.review(POOL[len(grid)](channels_first(x), review_grid).flatten(2).mT)  # (B, R, C)
                tokens = torch.cat([seen, tokens], dim=1)
                y = torch.cat([F.silu(linear(seen, self.in_proj.weight[self.inner :])), y], dim=1)
                made = _with_review if torch.compiler.is_compiling() else _cached_with_review
                table = made(self.route, grid, review_grid, x.device)
            y = self.scan(tokens, y, table)[:, y.shape[1] - grid.numel() :]
            u = y.unflatten(1, grid)
        return self.out_proj(self.norm(u, z))


def _with_review(route: str, grid: Sequence[int], review_grid: Sequence[int], device: torch.device) -> Tensor:
    """Routes (K, R + L) through the review tokens, then through the map."""
    behind = routes(route, grid, device) + prod(review_grid)
    return torch.cat([routes(route, review_grid, device), behind], dim=1)


# A new table would be checked at each scan, for which the host waits on a GPU.
_cached_with_review = lru_cache(maxsize=512)(_with_review)


class SelectiveHeads(nn.Module):
    """Selection (B, C and step size from the tokens), decay per head, and the projection of the review tokens."""

    def __init__(
        self, width: int, inner: int, head_width: int, state_size: int, directions: int, *, review: bool
    ) -> None:
        super().__init__()
        heads = inner // head_width
        self.parts = [state_size, state_size, heads]
        self.select = Linear(width, sum(self.parts), bias=False)
        self.heads = HeadScan(inner, head_width, directions)
        self.review = nn.Sequential(nn.LayerNorm(width), Linear(width, width)) if review else nn.Identity()

    def forward(self, tokens: Tensor, u: Tensor, table: Tensor) -> Tensor:
        """tokens (B, L, C) select, u (B, L, E) is scanned along the routes of the table (K, L): (B, L, E)."""
        B, C, dt = self.select(tokens).split(self.parts, dim=-1)
        return self.heads(u, dt, B, C, table)


class MATEBlock(nn.Module):
    """(B, *S, C) to itself: both branches on one norm, then the MLP."""

    def __init__(
        self, width: int, mixer: nn.Module, attention: nn.Module, mlp: nn.Module, *, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm, self.ma, self.te = nn.LayerNorm(width), mixer, attention
        self.norm2, self.mlp = nn.LayerNorm(width), mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.drop_path(self.ma(y) + self.te(y))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@unet_family("mate")
def mate(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 16,
    expand: WidthRatio = 1.0,
    head_width: Count = 8,
    review: CountOrZero = 4,
    schedule: str = "constant",
    window: Edge = None,
    mlp_ratio: WidthRatio = 2.0,
    use_scan: bool = True,
) -> BlockFactory:
    """LinGen's MATE blocks: a rotary-major Mamba-2 scan with review tokens, and shifted windows (arXiv:2412.09856).

    Args:
        state_size, expand: of the scans, as for ``vm_unet``.
        head_width: channels per scan head and half of those per attention head, at least.
        review: edge of the pooled grid of review tokens; 0 for none.
        schedule: as for ``vm_unet``; a stage with one route scans its rotary order forward only.
        window, mlp_ratio: as for ``lamamba``.
        use_scan: False leaves the scans (and the review tokens) out and keeps the attention.
    """
    names = routes_per_stage(topology, "bidirectional", schedule)
    places = topology.block_places
    attention = window_attentions(topology, window, 2 * head_width)
    scan = partial(MATEMixer, state_size=state_size, expand=expand, head_width=head_width, review=review)

    def block(stage: int, index: int, width: int) -> nn.Module:
        layer, ways = places.index((stage, index)), route_count(names[stage], topology.spatial_dims)
        mixer = scan(width, topology.kernels[stage], layer=layer, directions=ways, use_scan=use_scan)
        near, mlp = attention(stage, index, width), MLP(width, int(mlp_ratio * width))
        return MATEBlock(width, mixer, near, mlp, drop_path=rate(stage, index))

    return block
