"""LaMamba in its planned form: scan, window attention and MLP in the U-Net frame.

Source: Fu et al. 2024, LaMamba-Diff (arXiv:2408.02615), section 3.2, and its public code. There each branch is
modulated by a condition (diffusion's time and class); a segmentation network has none, which leaves a pre-norm block:

    x = x + scan(LN(x));   x = x + window_attention(LN(x));   x = x + MLP(LN(x))
"""

from collections.abc import Sequence

from torch import Tensor, nn

from medmamba.networks.blocks.residual import MLP, DropPath
from medmamba.networks.planned.registry import Count, Edge, Rate, WidthRatio, unet_family
from medmamba.networks.planned.stage_mixers import scan_mixers, window_attentions
from medmamba.networks.planned.unet import BlockFactory, Topology


class LaMambaBlock(nn.Module):
    """(B, *S, C) to (B, *S, C), as are the mixers; stochastic depth of each branch, which the original never uses."""

    def __init__(
        self, width: int, scan: nn.Module, attention: nn.Module, *, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm, self.op = nn.LayerNorm(width), scan
        self.norm_swin, self.attn = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, int(mlp_ratio * width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.op(self.norm(x)))
        x = x + self.drop_path(self.attn(self.norm_swin(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@unet_family("lamamba")
def lamamba(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 8,
    routes: str | Sequence[str] = "continuous",
    schedule: str = "constant",
    expand: WidthRatio = 1.0,
    window: Edge = None,
    head_width: Count = 16,
    mlp_ratio: WidthRatio = 2.0,
    use_scan: bool = True,
) -> BlockFactory:
    """LaMamba's blocks: scan, then window attention, then an MLP (arXiv:2408.02615).

    Args:
        state_size, routes, schedule, expand: of the scans, as for ``vm_unet``.
        window: edge of the attention windows; 8 in 2D and 4 in 3D if None. Every second block shifts them.
        head_width: channels per attention head, at least.
        mlp_ratio: hidden width of the MLP over the stage's width.
        use_scan: False leaves the scans out and keeps the attention.
    """
    scan = scan_mixers(topology, routes, schedule, state_size=state_size, expand=expand, use_scan=use_scan)
    attention = window_attentions(topology, window, head_width)

    def block(stage: int, index: int, width: int) -> nn.Module:
        near = attention(stage, index, width)
        return LaMambaBlock(width, scan(stage, width), near, mlp_ratio=mlp_ratio, drop_path=rate(stage, index))

    return block
