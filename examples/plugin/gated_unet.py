"""A network of one's own in medmamba: gated depthwise convolutions in the U-Net frame.

The frame (stem, strides, skips, deep supervision, padding) is medmamba's; the family brings its block: channels-last
maps (B, *S, C) in, the same shape out. Installed (`pip install examples/plugin`) it is planned, trained and exported
like medmamba's own:

    medmamba plan DATASET -o RUN --network gated_unet
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from medmamba.networks.blocks.maps import channels_first, channels_last, depthwise
from medmamba.networks.planned.registry import Rate, WidthRatio, unet_family
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.plans.cost.blocks import register_family
from medmamba.plans.families import FAMILIES


class GatedBlock(nn.Module):
    """x + out( depthwise(value) * SiLU(gate) ) of LayerNorm(x)."""

    def __init__(self, width: int, inner: int, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value_gate = nn.Linear(width, 2 * inner)
        self.conv = depthwise(inner, kernel)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.value_gate(self.norm(x)).chunk(2, dim=-1)  # (B, *S, inner) each
        value = channels_last(self.conv(channels_first(value)))
        return x + self.out(value * F.silu(gate))


@unet_family("gated_unet")
def gated_unet(topology: Topology, rate: Rate, *, expand: WidthRatio = 1.0) -> BlockFactory:
    """Gated depthwise convolutions: an example of a family of one's own.

    Args:
        expand: inner width of a block over the stage's width.
    """

    def block(stage: int, index: int, width: int) -> nn.Module:
        return GatedBlock(width, int(expand * width), topology.kernels[stage])

    return block


# For the planner: it stands in the frame, and costs, as MambaOut does, the other family without a scan.
register_family(replace(FAMILIES["mambaout"], name="gated_unet", source="an example"), cost_as="mambaout")
