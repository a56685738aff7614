"""HRVMamba's published classification network around our backbone, whose parameters the paper counts."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from medmamba.networks.blocks.linear import Linear
from medmamba.networks.published.hrvmamba import EXPANSION, Bottleneck, PublishedHRVMamba, conv_norm
from tests.parity.published_sizes import HRVMAMBA


class HRVMambaClassifier(nn.Module):
    """The published classification network: the backbone, HRNet's neck, one linear layer."""

    HEADS = (32, 64, 128, 256)  # middle widths of the neck's bottlenecks; outputs are four times as wide
    FEATURES = 2048

    def __init__(self, size: str = "small", classes: int = 1000, **options: object) -> None:
        super().__init__()
        se_lpu, stage1_width, width, _ = HRVMAMBA[size]
        self.backbone = PublishedHRVMamba(
            3,
            stage1_width,
            width,
            se_lpu=se_lpu,
            output_norms=False,
            **options,  # type: ignore[arg-type]
        )
        outs = [EXPANSION * c for c in self.HEADS]
        self.increase_layers = nn.ModuleList(Bottleneck(width * 2**i, c) for i, c in enumerate(self.HEADS))
        self.downsample_layers = nn.ModuleList(
            nn.Sequential(*conv_norm(a, b, 3, 2), nn.ReLU()) for a, b in pairwise(outs)
        )
        self.final_layer = nn.Sequential(*conv_norm(outs[-1], self.FEATURES, 1), nn.ReLU())
        self.head = Linear(self.FEATURES, classes)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.backbone(image)
        x = self.increase_layers[0](maps[0])
        for i, down in enumerate(self.downsample_layers):
            x = down(x) + self.increase_layers[i + 1](maps[i + 1])
        return self.head(self.final_layer(x).mean((2, 3)))
