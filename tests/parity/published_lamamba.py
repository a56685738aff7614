"""LaMamba-Diff's conditioned block, and its U-Net as published, without the conditioning.

Source: Fu et al. 2024, LaMamba-Diff (arXiv:2408.02615), sections 3.2 and 3.3, and its public code.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmamba.errors import ConfigError
from medmamba.networks.blocks.attention import WindowAttention
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.patches import Level, PatchEmbed, PatchExpand, PatchMerging
from medmamba.networks.blocks.vss import SS2D
from medmamba.networks.planned.lamamba import LaMambaBlock


class ConditionedBlock(LaMambaBlock):
    """The block with a condition (B, condition_width) that gives each branch a shift, a scale and a gate:

    x = x + gate * branch(LN(x) * (1 + scale) + shift)
    """

    def __init__(self, width: int, scan: nn.Module, attention: nn.Module, condition_width: int, **options: Any) -> None:
        super().__init__(width, scan, attention, **options)
        self.condition_projection = Linear(condition_width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 9 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]  # needs its condition
        numbers = self.adaLN_modulation(self.condition_projection(condition))  # (B, 9C)
        parts = numbers.reshape(len(numbers), *[1] * (x.ndim - 2), -1).chunk(9, dim=-1)
        branches = ((self.norm, self.op), (self.norm_swin, self.attn), (self.norm2, self.mlp))
        for (norm, branch), number in zip(branches, (0, 3, 6), strict=True):
            shift, scale, gate = parts[number : number + 3]
            x = x + gate * branch(norm(x) * (1 + scale) + shift)
        return x


class PublishedLaMamba(nn.Module):
    """LaMamba-Diff's U-Net without its conditioning: (B, in, R*p, R*p) to (B, out, R*p, R*p).

    Four levels of width d, 2d, 4d, 4d, the last without downsampling; additive skips at all four; a residual middle; a
    decoder one block deeper than the encoder. The learned position table fixes the size.

    Args:
        width: d.
        resolution: R, tokens per axis.
        extra_decoder_blocks: how much deeper the decoder's levels are.
        heads: attention heads per level.
        mlp_ratio: of the blocks.
        scan: width -> scan mixer; the original's, along snakes, by default.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 8,
        width: int = 320,
        *,
        resolution: int = 64,
        patch: int = 1,
        depths: Sequence[int] = (2, 2, 2, 2),
        middle_depth: int = 2,
        extra_decoder_blocks: int = 1,
        heads: Sequence[int] = (16, 16, 16, 16),
        window: int = 8,
        mlp_ratio: float = 4.0,
        scan: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        scan = scan or (lambda c: SS2D(c, state_size=1, conv_bias=False, route="continuous"))
        widths = [width, 2 * width, 4 * width, 4 * width]
        grids = [resolution, resolution // 2, resolution // 4, resolution // 4]

        def blocks(level: int, count: int) -> list[nn.Module]:
            c, edge = widths[level], min(window, grids[level])
            shift = grids[level] > window
            return [
                LaMambaBlock(
                    c,
                    scan(c),
                    WindowAttention(c, heads[level], (edge, edge), shifted=shift and i % 2 == 1),
                    mlp_ratio=mlp_ratio,
                )
                for i in range(count)
            ]

        self.patch_embed = PatchEmbed(in_channels, width, (patch, patch))
        self.pos_embed = nn.Parameter(torch.zeros(1, resolution, resolution, width))
        self.layers = nn.ModuleList(
            Level(
                blocks(i, depths[i]),
                downsample=PatchMerging(widths[i], widths[i + 1], (2, 2)) if i < 2 else None,
            )
            for i in range(4)
        )
        self.mid_layer = Level(blocks(3, middle_depth))
        self.layers_up = nn.ModuleList(
            Level(
                blocks(i, depths[i] + extra_decoder_blocks),
                upsample=PatchExpand(widths[i + 1], widths[i], (2, 2)) if i < 2 else None,
            )
            for i in reversed(range(4))
        )
        self.final_up = PatchExpand(width, width, (patch, patch))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_linear = Linear(width, out_channels)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        if x.shape[1:3] != self.pos_embed.shape[1:3]:
            raise ConfigError(
                f"This LaMamba was built for {tuple(self.pos_embed.shape[1:3])} tokens and got {tuple(x.shape[1:3])} "
                f"from an image of {tuple(image.shape[2:])}; its position table is fixed to one image size."
            )
        x = x + self.pos_embed
        skips = []
        for level in levels(self.layers):
            x = level.blocks(x)
            skips.append(x)
            x = level.downsample(x)
        x = x + self.mid_layer(x)
        for level in levels(self.layers_up):
            x = level.blocks(level.upsample(x) + skips.pop())
        return self.final_linear(self.final_norm(self.final_up(x))).movedim(-1, 1)


def levels(modules: nn.ModuleList) -> Iterator[Level]:
    """The members of a list of levels, with their type."""
    for module in modules:
        assert isinstance(module, Level)
        yield module
