"""nnU-Net's residual encoder U-Net, ``residual_unet`` (ResidualEncoderUNet).

Source: Isensee et al. 2024 (arXiv:2404.09556; its presets M, L and XL differ in the plan, not in the blocks);
otherwise as :mod:`~.plain_unet`.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from torch import Tensor, nn

from medmamba.networks.planned.plain_unet import (
    USUAL,
    ConvNorm,
    ConvParts,
    ConvUNet,
    decoder_stages,
    encoder_numbers,
    initialise,
)
from medmamba.networks.planned.registry import network
from medmamba.networks.planned.unet import Topology

POOL: dict[int, type[nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


@network("residual_unet", full_resolution_only=True, min_stages=3, default_blocks=(1, 3, 4, 6))
def residual_unet(
    topology: Topology, *, decoder_convs: int | Sequence[int] = 1, parts: Mapping[str, Any] | None = None
) -> nn.Module:
    """nnU-Net's residual encoder U-Net, ResidualEncoderUNet: 1, 3, 4, 6, 6, ... residual blocks per stage.

    ``decoder_convs``: convolutions per decoder stage, from the bottleneck up; ``parts``: fields of ``ConvParts``.
    """
    own = ConvParts.of(parts)
    stages: list[nn.Module] = []
    for before, width, kernel, stride, blocks in encoder_numbers(topology):
        stem = [] if stages else [ConvNorm(before, width, kernel, parts=own)]
        first = ResidualBlock(width if stem else before, width, kernel, stride, own)
        more = (ResidualBlock(width, width, kernel, [1] * len(stride), own) for _ in range(blocks - 1))
        stages.append(nn.Sequential(*stem, first, *more))
    made = ConvUNet(topology, stages, decoder_stages(topology, decoder_convs, partial(ConvNorm, parts=own))).apply(
        initialise
    )
    for module in made.modules():
        if isinstance(module, ResidualBlock) and own.norm != "none" and own.affine:  # it begins as its shortcut
            nn.init.zeros_(module.second.get_parameter("norm.weight"))
    return made


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut, as in ResNet-D (He et al., arXiv:1812.01187): BasicBlockD.

    Where the resolution changes the shortcut is averaged, where the width changes it is convolved with an edge of 1 and
    normalised.
    """

    def __init__(
        self, in_width: int, width: int, kernel: Sequence[int], stride: Sequence[int], parts: ConvParts = USUAL
    ) -> None:
        super().__init__()
        dims = len(kernel)
        self.first = ConvNorm(in_width, width, kernel, stride, parts=parts)
        self.second = ConvNorm(width, width, kernel, activate=False, parts=parts)
        self.act = parts.activation()
        shortcut: OrderedDict[str, nn.Module] = OrderedDict()
        if prod(stride) > 1:
            shortcut["pool"] = POOL[dims](tuple(stride), tuple(stride))
        if in_width != width:
            shortcut["project"] = ConvNorm(in_width, width, (1,) * dims, bias=False, activate=False, parts=parts)
        self.shortcut = nn.Sequential(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(self.first(x))
        inner += self.shortcut(x)
        return self.act(inner)
