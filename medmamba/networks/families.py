"""The planned families: the U-Net frame with each family's block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from medmamba.errors import ConfigError
from medmamba.networks.registry import network
from medmamba.networks.unet import PlannedUNet, Topology
from medmamba.networks.vss import SS2D, VSSBlock


def per_stage(value: str | Sequence[str], stages: int, name: str) -> list[str]:
    """One value for all stages, or one for each."""
    values = [value] * stages if isinstance(value, str) else list(value)
    if len(values) != stages:
        raise ConfigError(f"{name} has {len(values)} entries for {stages} stages; give one name, or one per stage.")
    return values


def drop_path_rates(topology: Topology, largest: float) -> dict[tuple[int, int], float]:
    """Stochastic-depth rate per (stage, block): 0 at the first block, rising to ``largest`` at the last."""
    places = [(i, j) for i, count in enumerate(topology.blocks_per_stage) for j in range(count)]
    return dict(zip(places, torch.linspace(0, largest, len(places)).tolist(), strict=True))


@network("vm_unet")
def vm_unet(
    topology: Topology,
    *,
    state_size: int = 16,
    routes: str | Sequence[str] = "raster",
    expand: float = 1.0,
    drop_path: float = 0.0,
    conv_blocks: int = 1,
    decoder_convs: int = 1,
    checkpoint_blocks: bool = False,
    use_scan: bool = True,
) -> nn.Module:
    """VM-UNet's gated scan blocks in the planned frame.

    Args:
        state_size: N of the scans.
        routes: a route set (see ``routes.py``), or one per stage.
        expand: inner width of the scan over the stage's width.
        drop_path: stochastic depth at the last block.
        conv_blocks: residual convolution blocks before the scan blocks of each stage.
        decoder_convs: convolutions after each skip.
        checkpoint_blocks: recompute blocks in the backward pass.
        use_scan: False leaves every scan out.
    """
    t = topology
    names = per_stage(routes, len(t.strides), "routes")
    rates = drop_path_rates(t, drop_path)

    def block(stage: int, index: int, width: int) -> nn.Module:
        mixer = SS2D(
            width,
            spatial_dims=t.spatial_dims,
            expand=expand,
            state_size=state_size,
            kernel=t.kernels[stage],
            route=names[stage],
            use_scan=use_scan,
        )
        return VSSBlock(width, mixer, drop_path=rates[stage, index])

    return PlannedUNet(
        t, block, conv_blocks=conv_blocks, decoder_convs=decoder_convs, checkpoint_blocks=checkpoint_blocks
    )
