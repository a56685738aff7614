"""Network families as the planner sees them: how wide and deep they are, how they scan, and in which frame they stand.

A new family is one line in :data:`FAMILIES` and its block's cost in blocks.py; nothing else in the planner knows a
family by name. The families themselves are built by medmamba.networks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from medmamba.plugins import find_network

Kind = Literal["scan", "plain", "residual"]


@dataclass(frozen=True)
class Family:
    """What the planner must know about a family of networks."""

    name: str
    kind: Kind
    """"scan": blocks in the planned frame; "plain" and "residual": nnU-Net's PlainConvUNet and ResidualEncoderUNet."""
    source: str
    has_scan: bool = True
    """Whether the blocks scan at all."""
    parallel: bool = False
    """Whether every resolution stays alive to the end of the encoder, as a branch of its own."""
    bottleneck_only: bool = False
    """Whether only the coarsest stage has blocks."""
    stem_features: int = 16
    """Channels of a convolution stem at full resolution."""
    base_features: int = 16
    """Channels at full resolution from which the other stages double."""
    max_features: tuple[int, int] = (512, 320)
    """Largest number of channels, in 2D and in 3D."""
    max_pools: int | None = 5
    """Halvings per axis at most; None: as many as the patch allows."""
    min_stages: int = 2
    """Resolutions that the network needs at least."""
    stem_blocks: int = 2
    """Convolutions of a convolution stem at full resolution."""
    blocks: int = 1
    """Blocks per stage of the encoder."""
    first_block_level: int = 1
    """Halvings from which a stage has blocks, under a convolution stem; the coarsest stage always has them."""
    decoder_convs: int = 1
    """Convolutions of a decoder stage."""
    conv_blocks: int = 1
    """Residual convolution blocks before the blocks of each stage."""
    states: tuple[int, int] = (16, 8)
    """States per inner channel of the scan, in 2D and in 3D."""
    routes: str = "raster"
    """Route set of the scans, or a word for a fixed order."""
    expand: int = 1
    """Inner width of the scan over the block's."""
    window: int = 0
    """Tokens of an attention window; 0: none."""
    backward_maps: float = 1.5
    """Temporary maps of the widest layer at full resolution where the backward pass begins; measured."""

    def max_features_in(self, spatial_dims: int) -> int:
        return self.max_features[spatial_dims - 2]

    def states_in(self, spatial_dims: int) -> int:
        return self.states[spatial_dims - 2]


_BASELINE = Family(
    name="plain_unet",
    kind="plain",
    source="nnU-Net 2.8.1; dynamic-network-architectures 0.4.4",
    has_scan=False,
    stem_features=32,
    base_features=32,
    max_pools=None,
    min_stages=3,
    blocks=2,
    decoder_convs=2,
    states=(1, 1),
    routes="none",
    backward_maps=4.2,
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("vm_unet", "scan", "VM-UNet, arXiv:2402.02491: gated scan blocks", first_block_level=2),
        Family(
            "mhs_vm",
            "scan",
            "MHS-VM, arXiv:2406.05992: several scan heads per block",
            first_block_level=2,
            routes="heads",
        ),
        Family(
            "hrvmamba",
            "scan",
            "HRVMamba, arXiv:2410.03174: parallel branches that keep the resolution",
            first_block_level=2,
            parallel=True,
            states=(1, 1),
        ),
        Family("vim", "scan", "Vim, arXiv:2401.09417: there and back through the whole map", routes="bidirectional"),
        Family(
            "mambaout", "scan", "MambaOut, arXiv:2405.07992: the block without a scan", has_scan=False, routes="none"
        ),
        Family(
            "lamamba",
            "scan",
            "LaMamba, arXiv:2408.02615: scan and window attention",
            first_block_level=2,
            routes="continuous",
            window=64,
        ),
        Family(
            "mate",
            "scan",
            "LinGen, arXiv:2412.09856: rotary-major scan and windows",
            states=(16, 16),
            routes="rotary:2",
            window=64,
        ),
        Family(
            "u_mamba_bot",
            "scan",
            "U-Mamba Bot, arXiv:2401.04722: residual U-Net, scan in the bottleneck",
            bottleneck_only=True,
            conv_blocks=2,
            states=(16, 16),
            routes="forward",
            expand=2,
        ),
        Family(
            "u_mamba_enc",
            "scan",
            "U-Mamba Enc, arXiv:2401.04722: residual U-Net, scan in every encoder stage",
            conv_blocks=2,
            states=(16, 16),
            routes="forward",
            expand=2,
        ),
        Family(
            "segmamba",
            "scan",
            "SegMamba, arXiv:2401.13560: gated convolution, scan in three orientations",
            conv_blocks=0,
            states=(16, 16),
            routes="tri",
        ),
        _BASELINE,
        replace(_BASELINE, name="residual_unet", kind="residual", decoder_convs=1),
    )
}

RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6)
"""Residual encoder blocks per stage. Source: nnU-Net's residual encoder presets."""


def family(name: str) -> Family:
    """The family called ``name``, of another package too; raises ConfigError with the nearest spelling for an unknown
    one."""
    return find_network(name, FAMILIES)
