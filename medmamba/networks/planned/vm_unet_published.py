"""VM-UNet as published, as a network that can be trained: for the sake of its pretrained weights."""

from __future__ import annotations

from torch import nn

from medmamba.networks.blocks.vss import SS2D
from medmamba.networks.planned.registry import network
from medmamba.networks.planned.unet import Topology
from medmamba.networks.published.vm_unet import DEPTHS, PublishedVMUNet

NUMBERS = {
    "stem": "patch",
    "strides": [[4, 4], [2, 2], [2, 2], [2, 2]],
    "features_per_stage": [96, 192, 384, 768],
    "blocks_per_stage": list(DEPTHS["released"][0]),
    "kernels": None,
    "deep_supervision": False,
}
"""The released network in the words of a plan."""


@network("vm_unet_published", planar=True, published=NUMBERS)
def vm_unet_published(topology: Topology, *, use_scan: bool = True) -> nn.Module:
    """VM-UNet as published, trained for the sake of its pretrained weights (arXiv:2402.02491)."""
    channels = 3 if topology.in_channels == 1 else topology.in_channels  # its weights are for colour
    widths, depths = topology.features_per_stage, topology.blocks_per_stage
    return PublishedVMUNet(
        channels, topology.out_channels, widths, depths, mixer=lambda width: SS2D(width, use_scan=use_scan)
    )
