"""VM-UNet in its planned form: gated scan blocks in the U-Net frame."""

from collections.abc import Sequence

from medmamba.networks.blocks.vss import VSSBlock
from medmamba.networks.planned.registry import Count, Rate, WidthRatio, unet_family
from medmamba.networks.planned.stage_mixers import scan_mixers
from medmamba.networks.planned.unet import BlockFactory, Topology


@unet_family("vm_unet")
def vm_unet(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 8,
    routes: str | Sequence[str] = "raster",
    schedule: str = "constant",
    expand: WidthRatio = 1.0,
    use_scan: bool = True,
) -> BlockFactory:
    """VM-UNet's gated scan blocks (arXiv:2402.02491).

    Args:
        state_size: N of the scans.
        routes: a route set, or one per stage.
        schedule: "constant", "falling" (fewer routes with depth) or "rising".
        expand: inner width of the scan over the stage's width.
        use_scan: False leaves every scan out.
    """
    mixer = scan_mixers(topology, routes, schedule, state_size=state_size, expand=expand, use_scan=use_scan)
    return lambda stage, index, width: VSSBlock(width, mixer(stage, width), drop_path=rate(stage, index))
