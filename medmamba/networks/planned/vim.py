"""Vim in its planned form: bidirectional Mamba on the flattened map in the U-Net frame."""

from __future__ import annotations

from torch import nn

from medmamba.networks.blocks.residual import PreNorm, RMSNorm
from medmamba.networks.blocks.vim import BidirectionalMamba, Directions, FlatMixer
from medmamba.networks.planned.bounds import Count, WidthRatio
from medmamba.networks.planned.registry import Rate, unet_family
from medmamba.networks.planned.stage_mixers import routes_per_stage
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.plans.route_sets import route_count


@unet_family("vim")
def vim(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 8,
    expand: WidthRatio = 1.0,
    directions: Directions = "v2",
    schedule: str = "constant",
    use_scan: bool = True,
) -> BlockFactory:
    """Vim's bidirectional Mamba on the flattened map (arXiv:2401.09417).

    Args:
        state_size, expand: of the scans, as for ``vm_unet``.
        directions: "v2" (own parameters per direction), "v1" (shared) or "none" (forward only).
        schedule: as for ``vm_unet``; a stage with one route scans forward only.
        use_scan: False leaves the scans out.
    """
    names = routes_per_stage(topology, "bidirectional", schedule)

    def block(stage: int, index: int, width: int) -> nn.Module:
        ways = directions if route_count(names[stage], topology.spatial_dims) > 1 else "none"
        mixer = BidirectionalMamba(width, state_size=state_size, expand=expand, directions=ways, use_scan=use_scan)
        return PreNorm(RMSNorm(width), FlatMixer(mixer), rate(stage, index))

    return block
