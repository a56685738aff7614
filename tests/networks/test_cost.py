"""Costs that one can compute by hand."""

from __future__ import annotations

from medmamba.networks import build_network
from medmamba.networks.blocks.vss import SS2D
from medmamba.networks.cost import network_cost
from medmamba.networks.published.vm_unet import PublishedVMUNet


def test_scan_and_projections_of_one_mixer_are_counted() -> None:
    # C 8, E 16, N 4, R 1, K 4, 5 x 6 tokens.
    cost = network_cost(SS2D(8, state_size=4), (1, 5, 6, 8))
    tokens = 30
    assert cost.scan_steps == 4 * tokens * 16 * 4
    assert cost.scan_calls == 1
    linear = tokens * (8 * 32 + 16 * 8)
    depthwise = tokens * 16 * 9
    x_proj = tokens * 16 * 4 * (1 + 2 * 4)
    dt_proj = tokens * (4 * 1) * (4 * 16)  # one block-diagonal product
    assert cost.macs == linear + depthwise + x_proj + dt_proj
    assert "in 1 scans" in cost.summary()


def test_the_published_vm_unet_does_a_quarter_of_a_billion_scan_steps() -> None:
    cost = network_cost(PublishedVMUNet(1, 9), (1, 1, 224, 224))
    assert round(cost.scan_steps / 1e9, 3) == 0.250


def test_the_twin_without_scan_counts_none() -> None:
    numbers = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "strides": [[1, 1], [2, 2]],
        "features_per_stage": [8, 16],
    }
    with_scan = network_cost(build_network("vm_unet", **numbers), (1, 1, 8, 8))
    without = network_cost(build_network("vm_unet", use_scan=False, **numbers), (1, 1, 8, 8))
    assert without.scan_steps == 0
    assert without.macs < with_scan.macs
    assert without.parameters < with_scan.parameters
