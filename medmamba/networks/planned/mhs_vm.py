"""MHS-VM in its planned form: multi-head scan blocks in the U-Net frame."""

from __future__ import annotations

from torch import nn

from medmamba.networks.blocks.mhs import HEADS, MHSMixer, MultiHeadScan
from medmamba.networks.blocks.vss import VSSBlock
from medmamba.networks.planned.bounds import Count, NotNegative
from medmamba.networks.planned.registry import Rate, unet_family
from medmamba.networks.planned.stage_mixers import routes_per_stage
from medmamba.networks.planned.unet import BlockFactory, Topology
from medmamba.plans.route_sets import route_count


@unet_family("mhs_vm")
def mhs_vm(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 8,
    heads: str = "".join(HEADS),
    schedule: str = "constant",
    threshold: NotNegative = 0.0,
    gated: bool = True,
    use_scan: bool = True,
) -> BlockFactory:
    """MHS-VM's multi-head scan blocks (arXiv:2406.05992).

    Args:
        state_size: N of the scans.
        heads: letters of the heads: C snake, X diagonal, S spiral, Z raster.
        schedule: of the routes of each head, as for ``vm_unet``.
        threshold: of the fusion of a head's routes; see ``mhs.py`` for the range in which it screens.
        gated: with the gate beside the scan (VSSGate) or without (VSSUnGated).
        use_scan: False leaves scans and fusion out.
    """
    names = routes_per_stage(topology, HEADS["C"], schedule)  # every head has as many

    def block(stage: int, index: int, width: int) -> nn.Module:
        mhs = MultiHeadScan(
            width,
            spatial_dims=topology.spatial_dims,
            heads=heads,
            routes=route_count(names[stage], topology.spatial_dims),
            threshold=threshold,
            state_size=state_size,
            use_scan=use_scan,
        )
        kernel = topology.kernels[stage]
        mixer = MHSMixer(width, mhs, spatial_dims=topology.spatial_dims, kernel=kernel, gated=gated)
        return VSSBlock(width, mixer, drop_path=rate(stage, index))

    return block
