"""Vim as published: the classification network of bidirectional Mamba blocks (their mixer is ``planned/vim.py``).

Source: Zhu et al. 2024, Vision Mamba (arXiv:2401.09417), algorithm 1, and its public code.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medmamba.errors import ConfigError
from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import channels_last
from medmamba.networks.blocks.residual import DropPath, RMSNorm, rising_rates
from medmamba.networks.blocks.scan_core import at_least_float32
from medmamba.networks.planned.vim import BidirectionalMamba


class VimBlock(nn.Module):
    """Residual stream first, then norm and mixer: (hidden, residual) to (hidden, residual)."""

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm, self.mixer, self.drop_path = norm, mixer, DropPath(drop_path)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = at_least_float32(hidden)
        residual = hidden if residual is None else residual + self.drop_path(hidden)
        return self.mixer(self.norm(residual)), residual


class PatchTokens(nn.Module):
    """(B, in, H, W) to tokens (B, M, d)."""

    def __init__(self, in_channels: int, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride)

    def forward(self, image: Tensor) -> Tensor:
        return channels_last(self.proj(image)).flatten(1, 2)


# Where class tokens go in a sequence of M patch tokens, in the order in which they are put there, and their names.
CLASS_TOKENS: dict[str, Callable[[int], tuple[list[int], list[str]]]] = {
    "middle": lambda tokens: ([tokens // 2], ["cls_token"]),
    "head": lambda _: ([0], ["cls_token"]),
    "both": lambda tokens: ([0, tokens + 1], ["cls_token_head", "cls_token_tail"]),
    "none": lambda _: ([], []),
}
POOLS: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda x: x.mean(1), "last": lambda x: x[:, -1]}


class PublishedVim(nn.Module):
    """(B, in, H, W) of the size it was built for to class logits.

    Args:
        tokens: number M of patch tokens; the position table is as long, plus one for the class token.
        class_token: where class tokens are put and read out: one in the "middle" (published) or at the "head", "both"
            one at each end, averaged, or "none".
        pool: what is read out without class tokens: the "mean" or the "last" token.
        rms_norm: RMSNorm or LayerNorm.
        mixer: further arguments of :class:`BidirectionalMamba`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1000,
        width: int = 192,
        depth: int = 24,
        *,
        tokens: int = 196,
        patch: int = 16,
        stride: int = 16,
        class_token: str = "middle",
        pool: str = "mean",
        rms_norm: bool = True,
        drop_path: float = 0.0,
        **mixer: Any,
    ) -> None:
        super().__init__()
        self.places, names = CLASS_TOKENS[class_token](tokens)
        self.pool = POOLS[pool]
        self.patch_embed = PatchTokens(in_channels, width, patch, stride)
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, width)))
        self.class_tokens = names
        self.pos_embed = nn.Parameter(torch.empty(1, tokens + len(names), width))
        rates = [0.0, *rising_rates(drop_path, depth)]

        def norm() -> nn.Module:
            return RMSNorm(width) if rms_norm else nn.LayerNorm(width)

        mixers = [BidirectionalMamba(width, **mixer) for _ in range(depth)]
        self.layers = nn.ModuleList(VimBlock(norm(), mixers[i], rates[i]) for i in range(depth))
        self.drop_path = DropPath(drop_path)
        self.norm_f = norm()
        self.head = Linear(width, classes)
        for parameter in (self.pos_embed, *(self.get_parameter(name) for name in names), self.head.weight):
            nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.zeros_(self.head.bias)
        weight = self.patch_embed.proj.weight
        nn.init.trunc_normal_(weight, std=math.sqrt(1 / weight[0].numel()))  # LeCun
        nn.init.zeros_(self.patch_embed.get_parameter("proj.bias"))
        for layer in mixers:
            layer.out_proj.weight.data.div_(math.sqrt(depth))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)  # (B, M, d)
        for place, name in zip(self.places, self.class_tokens, strict=True):
            token = self.get_parameter(name).expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, :place], token, x[:, place:]], dim=1)
        if x.shape[1] != self.pos_embed.shape[1]:
            raise ConfigError(
                f"This Vim was built for {self.pos_embed.shape[1]} tokens and got {x.shape[1]} from an image of "
                f"{tuple(image.shape[2:])}; its position table is fixed to one image size."
            )
        hidden, residual = x + self.pos_embed, None
        for block in self.layers:
            hidden, residual = block(hidden, residual)
        x = self.norm_f(residual + self.drop_path(hidden))
        return self.head(x[:, self.places].mean(1) if self.places else self.pool(x))
