"""The memory model against measurement: every family, 2D and 3D, and what changes the count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medmamba.kernels.scan import compiled
from medmamba.networks.build import available_networks
from medmamba.plans.cost.blocks import CHANNEL_PAD, TILE
from medmamba.plans.cost.step import step_cost
from medmamba.plans.families import FAMILIES, family, route_count
from medmamba.plans.network import network_plan
from medmamba.plans.patch import plan_pooling
from medmamba.plans.schema import NetworkPlan

TOO_MUCH, TOO_LITTLE = 0.15, 0.05
"""Prediction may be 15 % above the measured peak, and 5 % below: too little is worse than too much."""


def planned(
    name: str, patch: tuple[int, ...], spacing: tuple[float, ...] | None = None, **choices
) -> tuple[NetworkPlan, list[int]]:
    chosen = family(name)
    pooling = plan_pooling(spacing or (1.0,) * len(patch), patch, max_pools=chosen.max_pools)
    return network_plan(chosen, pooling, **choices), list(pooling.patch_size)


def check(network: NetworkPlan, patch: list[int], *, batch_size: int = 2, in_channels: int = 1, out_channels: int = 3):
    from live_memory import peak_bytes

    sizes = {"batch_size": batch_size, "in_channels": in_channels, "out_channels": out_channels}
    measured = peak_bytes(network, patch, **sizes)
    predicted = step_cost(network, patch, **sizes).peak
    assert (1 - TOO_LITTLE) * measured <= predicted <= (1 + TOO_MUCH) * measured, (
        f"{network.name} on {patch}: predicted {predicted / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB"
    )


@pytest.mark.parametrize(
    ("name", "patch"),
    [(name, (32, 24, 32)) for name in available_networks()]
    + [
        pytest.param(name, (64, 96), marks=[] if name in ("vm_unet", "plain_unet", "hrvmamba") else pytest.mark.slow)
        for name in available_networks()
    ],
)
def test_every_family_needs_what_is_predicted(name: str, patch: tuple[int, ...]) -> None:
    check(*planned(name, patch))


@pytest.mark.parametrize("use_scan", [True, False])
def test_leaving_out_the_scan_is_counted(use_scan: bool) -> None:
    check(*planned("vm_unet", (32, 24, 32), use_scan=use_scan))


def test_a_strided_stem_is_counted() -> None:
    check(*planned("vm_unet", (32, 32, 32), stem="patch"))


def test_many_classes_and_channels_are_counted() -> None:
    check(*planned("vm_unet", (32, 32, 32)), in_channels=4, out_channels=60)


def test_thick_slices_are_counted() -> None:
    check(*planned("vm_unet", (8, 64, 64), spacing=(5.0, 1.0, 1.0)))


def test_a_small_patch_with_many_weights_is_counted() -> None:
    check(*planned("vm_unet", (16, 16, 16)))


@pytest.mark.slow
@pytest.mark.parametrize("name", available_networks())
@pytest.mark.parametrize("batch_size", [2, 3])
@pytest.mark.parametrize("patch", [(40, 56, 40), (64, 64, 64), (16, 96, 96), (128, 128), (192, 256)])
def test_the_prediction_holds_over_a_grid_of_patches(name: str, patch: tuple[int, ...], batch_size: int) -> None:
    spacing = (5.0, 1.0, 1.0) if patch[0] == 16 else None
    check(*planned(name, patch, spacing), batch_size=batch_size)


@pytest.mark.parametrize("name", available_networks())
@pytest.mark.parametrize("patch", [(64, 64, 64), (128, 128)])
def test_the_weights_are_counted_to_two_percent(name: str, patch: tuple[int, ...]) -> None:
    from live_memory import build

    network, _ = planned(name, patch)
    exact = sum(parameter.numel() for parameter in build(network, 2, 4).parameters())
    assert step_cost(network, patch, 2, 4, 1).gradients / 4 == pytest.approx(exact, rel=0.02)


def test_every_network_that_can_be_trained_can_be_planned() -> None:
    assert set(available_networks()) <= set(FAMILIES)


def test_every_family_scans_along_a_route_set() -> None:
    assert all(route_count(family.routes, 3) >= 0 for family in FAMILIES.values())


def test_more_routes_need_more_memory() -> None:
    network, patch = planned("vm_unet", (64, 64, 64))
    fewer = network.model_copy(update={"routes": "raster:2"})
    sizes = {"in_channels": 1, "out_channels": 3, "batch_size": 2}
    assert step_cost(fewer, patch, **sizes).peak < step_cost(network, patch, **sizes).peak


def test_the_scan_keeps_its_states_as_often_as_the_model_says():
    header = (Path(compiled.__file__).parents[1] / "csrc" / "abi.h").read_text()
    defined = dict(re.findall(r"#define (MM_TILE|MM_PAD) (\d+)", header))
    assert defined == {"MM_TILE": str(TILE), "MM_PAD": str(CHANNEL_PAD)}
