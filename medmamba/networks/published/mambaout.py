"""MambaOut as published: the classification network of gated convolution blocks (``planned/mambaout.py``).

Source: Yu and Wang 2024, MambaOut: Do we really need Mamba for vision? (arXiv:2405.07992), and its public code.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.linear import Linear
from medmamba.networks.blocks.maps import channels_last, on_channels_last
from medmamba.networks.blocks.residual import rising_rates, truncated_normal
from medmamba.networks.planned.mambaout import EPS, GatedCNNBlock


class Stem(nn.Module):
    """(B, in, H, W) to (B, H/4, W/4, C): two convolutions of stride 2 with LayerNorm, GELU between them."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width // 2, 3, 2, 1)
        self.norm1 = nn.LayerNorm(width // 2, eps=EPS)
        self.conv2 = nn.Conv2d(width // 2, width, 3, 2, 1)
        self.norm2 = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(channels_last(self.conv1(x))))
        return self.norm2(on_channels_last(self.conv2, x))


class Halving(nn.Module):
    """(B, H, W, C) to (B, H/2, W/2, C_out), sizes rounded up."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out_width, 3, 2, 1)
        self.norm = nn.LayerNorm(out_width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(on_channels_last(self.conv, x))


class Head(nn.Module):
    """Classifier: Linear, GELU, LayerNorm, Linear."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.norm = nn.LayerNorm(4 * width, eps=EPS)
        self.fc2 = Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.gelu(self.fc1(x))))


class PublishedMambaOut(nn.Module):
    """(B, in, H, W) to class logits (B, classes)."""

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1000,
        widths: Sequence[int] = (96, 192, 384, 576),
        depths: Sequence[int] = (3, 3, 9, 3),
        *,
        kernel: Sequence[int] = (7, 7),
        expansion: float = 8 / 3,
        conv_ratio: float = 1.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        rates = iter(rising_rates(drop_path, sum(depths)))
        gated = partial(GatedCNNBlock, expansion=expansion, kernel=kernel, conv_ratio=conv_ratio)
        self.downsample_layers = nn.ModuleList(
            [Stem(in_channels, widths[0]), *(Halving(a, b) for a, b in pairwise(widths))]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(gated(width, drop_path=next(rates)) for _ in range(depth)))
            for width, depth in zip(widths, depths, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=EPS)
        self.head = Head(widths[-1], classes)
        truncated_normal(self, nn.Linear, nn.Conv2d)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))  # (B, H/s, W/s, C) at strides s of 4, 8, 16, 32
        return self.head(self.norm(x.mean((1, 2))))
