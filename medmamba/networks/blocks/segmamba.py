"""SegMamba's gated spatial convolution.

Source: Xing et al. 2024, SegMamba (arXiv:2401.13560), section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medmamba.networks.blocks.convolution import ConvNormAct
from medmamba.networks.blocks.maps import channels_first, channels_last


class GatedSpatialConvolution(nn.Module):
    """x + conv1( conv3(conv3(x)) * conv1(x) ), every convolution with norm and activation; channels-last."""

    def __init__(self, width: int, kernel: Sequence[int]) -> None:
        super().__init__()
        point = (1,) * len(kernel)
        self.local = nn.Sequential(ConvNormAct(width, width, kernel), ConvNormAct(width, width, kernel))
        self.gate = ConvNormAct(width, width, point)
        self.mix = ConvNormAct(width, width, point)

    def forward(self, x: Tensor) -> Tensor:
        y = channels_first(x)
        return x + channels_last(self.mix(self.local(y) * self.gate(y)))
