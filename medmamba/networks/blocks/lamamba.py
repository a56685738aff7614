"""LaMamba-Diff's block: a scan, then window attention, then an MLP.

Source: Fu et al. 2024, LaMamba-Diff (arXiv:2408.02615), section 3.2, and its public code. There each branch is
modulated by a condition (diffusion's time and class); a segmentation network has none, which leaves a pre-norm block:

    x = x + scan(LN(x));   x = x + window_attention(LN(x));   x = x + MLP(LN(x))

The published U-Net and the conditioned block, compared with golden tensors, are ``networks/published/lamamba.py``.
"""

from __future__ import annotations

from torch import Tensor, nn

from medmamba.networks.blocks.residual import MLP, DropPath


class LaMambaBlock(nn.Module):
    """(B, *S, C) to (B, *S, C).

    Args:
        width: C.
        scan, attention: mixers of the first and the second branch, (B, *S, C) to itself.
        mlp_ratio: hidden width of the third branch over C.
        drop_path: stochastic depth of each branch (the original builds it and never uses it).
    """

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
