"""LaMamba-Diff's block: a scan, then window attention, then an MLP.

Source: Fu et al. 2024, LaMamba-Diff (arXiv:2408.02615), section 3.2, and its public code.

    x = x + g0 * scan( m0(LN(x)) );   x = x + g1 * window_attention( m1(LN(x)) );   x = x + g2 * MLP( m2(LN(x)) )

m_k(t) = t * (1 + scale_k) + shift_k, and the gates g_k, come from a condition (diffusion's time and class). A
segmentation network has none: shift 0, scale 0, gate 1, an ordinary pre-norm block.
"""

from __future__ import annotations

from torch import Tensor, nn

from medmamba.networks.blocks.drop_path import DropPath
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.mlp import MLP


class LaMambaBlock(nn.Module):
    """(B, *S, C) to (B, *S, C).

    Args:
        width: C.
        scan: mixer of the first branch, (B, *S, C) to itself.
        attention: mixer of the second branch.
        mlp_ratio: hidden width of the third branch over C.
        condition_width: width of the condition vector; no conditioning if None.
        drop_path: stochastic depth of each branch (the original builds it and never uses it).
    """

    def __init__(
        self,
        width: int,
        scan: nn.Module,
        attention: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        condition_width: int | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm, self.op = nn.LayerNorm(width), scan
        self.norm_swin, self.attn = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, int(mlp_ratio * width))
        self.drop_path = DropPath(drop_path)
        self.condition_projection: nn.Module | None = None
        self.adaLN_modulation: nn.Module | None = None
        if condition_width is not None:
            self.condition_projection = Linear(condition_width, width)
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 9 * width))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        modulation = self._modulation(condition, x.ndim)
        branches = ((self.norm, self.op), (self.norm_swin, self.attn), (self.norm2, self.mlp))
        for (norm, branch), (shift, scale, gate) in zip(branches, modulation, strict=True):
            y = norm(x)
            if shift is not None and scale is not None:
                y = y * (1 + scale) + shift
            y = self.drop_path(branch(y))
            x = x + (y if gate is None else gate * y)
        return x

    def _modulation(self, condition: Tensor | None, ndim: int) -> list[tuple[Tensor | None, ...]]:
        """(shift, scale, gate) per branch, each (B, 1, .., C)."""
        if self.adaLN_modulation is None or self.condition_projection is None or condition is None:
            return [(None, None, None)] * 3
        numbers = self.adaLN_modulation(self.condition_projection(condition))  # (B, 9C)
        parts = numbers.reshape(len(numbers), *[1] * (ndim - 2), -1).chunk(9, dim=-1)
        return [parts[0:3], parts[3:6], parts[6:9]]
