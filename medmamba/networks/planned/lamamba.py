"""LaMamba in its planned form: scan, window attention and MLP in the U-Net frame."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from medmamba.networks.blocks.lamamba import LaMambaBlock
from medmamba.networks.planned.bounds import Count, Edge, WidthRatio
from medmamba.networks.planned.registry import Rate, unet_family
from medmamba.networks.planned.stage_mixers import scan_mixers, window_attentions
from medmamba.networks.planned.unet import BlockFactory, Topology


@unet_family("lamamba")
def lamamba(
    topology: Topology,
    rate: Rate,
    *,
    state_size: Count = 8,
    routes: str | Sequence[str] = "continuous",
    schedule: str = "constant",
    expand: WidthRatio = 1.0,
    window: Edge = None,
    head_width: Count = 16,
    mlp_ratio: WidthRatio = 2.0,
    use_scan: bool = True,
) -> BlockFactory:
    """LaMamba's blocks: scan, then window attention, then an MLP (arXiv:2408.02615).

    Args:
        state_size, routes, schedule, expand: of the scans, as for ``vm_unet``.
        window: edge of the attention windows; 8 in 2D and 4 in 3D if None. Every second block shifts them.
        head_width: channels per attention head, at least.
        mlp_ratio: hidden width of the MLP over the stage's width.
        use_scan: False leaves the scans out and keeps the attention.
    """
    scan = scan_mixers(topology, routes, schedule, state_size=state_size, expand=expand, use_scan=use_scan)
    attention = window_attentions(topology, window, head_width)

    def block(stage: int, index: int, width: int) -> nn.Module:
        near = attention(stage, index, width)
        return LaMambaBlock(width, scan(stage, width), near, mlp_ratio=mlp_ratio, drop_path=rate(stage, index))

    return block
