"""SegMamba in its planned form: gated spatial convolution, tri-orientated scan and MLP in the U-Net frame.

Source: Xing et al. 2024, SegMamba (arXiv:2401.13560), section 2.3.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from medmamba.networks.blocks.convolution import ConvNormAct
from medmamba.networks.blocks.maps import channels_first, channels_last
from medmamba.networks.blocks.residual import MLP, PreNorm
from medmamba.networks.blocks.vss import VSSBlock
from medmamba.networks.planned.registry import Count, FrameOptions, Rate, WidthRatio, unet_family
from medmamba.networks.planned.stage_mixers import scan_mixers
from medmamba.networks.planned.unet import BlockFactory, Topology


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


@unet_family("segmamba", frame=FrameOptions(conv_blocks=0))
def segmamba(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 16,
    routes: str | Sequence[str] = "tri",
    schedule: str = "constant",
    expand: WidthRatio = 1.0,
    mlp_ratio: WidthRatio = 2.0,
    use_scan: bool = True,
) -> BlockFactory:
    """Gated spatial convolution, a tri-orientated scan and an MLP, like SegMamba (arXiv:2401.13560).

    Options as for ``vm_unet``, and ``mlp_ratio``, hidden width of the MLP over the stage's width.
    """
    mixer = scan_mixers(topology, routes, schedule, state_size=state_size, expand=expand, use_scan=use_scan)

    def block(stage: int, index: int, width: int) -> nn.Module:
        return nn.Sequential(
            GatedSpatialConvolution(width, topology.kernels[stage]),
            VSSBlock(width, mixer(stage, width), drop_path=rate(stage, index)),
            PreNorm(nn.LayerNorm(width), MLP(width, int(mlp_ratio * width)), rate(stage, index)),
        )

    return block
