"""VM-UNet's building blocks: the gated scan mixer and its residual block, in 2D and 3D.

Source: Ruan and Xiang 2024, VM-UNet (arXiv:2402.02491), figure 2; Liu et al. 2024, VMamba (arXiv:2401.10166).

Glossary: C width of the block, E = expand * C inner width; (B, *S, C) is a channels-last map with S = (H, W) or
(D, H, W).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import depthwise, on_channels_last, per_axis
from medmamba.networks.blocks.residual import DropPath
from medmamba.networks.blocks.scan_core import ScanCore, auto_dt_rank
from medmamba.networks.routes import routes
from medmamba.plans.families import route_count


class SS2D(nn.Module):
    """Gated multi-route scan mixer, (B, *S, C) to (B, *S, C).

    [x | z] = in_proj(input);  x = SiLU(depthwise(x));  out_proj( LayerNorm(scan(x)) * SiLU(z) ).

    ``bias`` is that of in_proj and out_proj; ``dt_rank`` is ceil(C / 16) if None; ``use_scan=False`` leaves the scan
    out and keeps everything around it: the control network.
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
        x = F.silu(on_channels_last(self.conv, x))
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
