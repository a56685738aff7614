"""U-Mamba in its planned forms: a residual U-Net with one-way Mamba in the bottleneck, or in every encoder stage."""

from torch import nn

from medmamba.networks.blocks.residual import PreNorm
from medmamba.networks.planned.registry import Count, FrameOptions, Rate, WidthRatio, unet_family
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.networks.planned.vim import BidirectionalMamba, FlatMixer


@unet_family("u_mamba_enc", frame=FrameOptions(conv_blocks=2))
def u_mamba_enc(
    topology: Topology, rate: Rate, *, state_size: Count = 16, expand: WidthRatio = 2.0, use_scan: bool = True
) -> BlockFactory:
    """A residual U-Net with one-way Mamba in every encoder stage, like U-Mamba Enc (arXiv:2401.04722).

    Options as for ``vm_unet``.
    """

    def block(stage: int, index: int, width: int) -> nn.Module:
        mixer = BidirectionalMamba(width, state_size=state_size, expand=expand, directions="none", use_scan=use_scan)
        return PreNorm(nn.LayerNorm(width), FlatMixer(mixer), rate(stage, index))

    return block


@unet_family("u_mamba_bot", frame=FrameOptions(conv_blocks=2))
def u_mamba_bot(
    topology: Topology, rate: Rate, *, state_size: Count = 16, expand: WidthRatio = 2.0, use_scan: bool = True
) -> BlockFactory:
    """A residual U-Net with one-way Mamba in the bottleneck only, like U-Mamba Bot (arXiv:2401.04722).

    Options as for ``vm_unet``.
    """
    block = u_mamba_enc(topology, rate, state_size=state_size, expand=expand, use_scan=use_scan)
    return lambda stage, index, width: block(stage, index, width) if stage == len(topology.strides) - 1 else None
