"""The network family is chosen by rules that are stated with their inputs."""

from __future__ import annotations

import math

import pytest
from planning_cases import case, fingerprint, plan_of

from medmamba.plans.automatic_choices import typical_diameters
from medmamba.plans.schema import Plan


def dataset(voxels: int, shape=(64, 64, 64), spacing=(1.0, 1.0, 1.0), **facts):
    counts = {"background": math.prod(shape) - voxels, "organ": voxels}
    return fingerprint([case(f"c{n}", shape, spacing, label_voxels=counts, **facts) for n in range(6)])


def network_decision(plan: Plan):
    return next(d for d in plan.decisions if d.name == "network")


def test_a_ball_has_its_diameter_in_voxels_of_the_target_grid() -> None:
    ball = round(4 / 3 * math.pi * 10**3)
    assert typical_diameters(dataset(ball), (1, 1, 1))["organ"] == pytest.approx(20, rel=1e-3)
    assert typical_diameters(dataset(ball), (2, 2, 2))["organ"] == pytest.approx(10, rel=1e-3)
    pieces = dataset(8 * ball, label_components={"organ": 8})
    assert typical_diameters(pieces, (1, 1, 1))["organ"] == pytest.approx(20, rel=1e-3)


def test_a_disc_has_its_diameter_in_flat_images() -> None:
    flat = dataset(round(math.pi * 50**2), (1, 256, 256), None)
    assert typical_diameters(flat, (999, 1, 1))["organ"] == pytest.approx(100, rel=1e-3)


def test_large_structures_get_the_default() -> None:
    plan = plan_of(dataset(30_000), network="auto")
    assert plan.default.network.name == "vm_unet"
    assert "default is kept" in network_decision(plan).reason


def test_thin_structures_get_the_parallel_branches() -> None:
    plan = plan_of(dataset(60), network="auto")
    assert plan.default.network.name == "hrvmamba"
    assert "'organ' is 4.9 voxels across" in network_decision(plan).reason


def test_a_named_network_is_not_questioned() -> None:
    plan = plan_of(dataset(60), network="vm_unet")
    assert plan.default.network.name == "vm_unet"
    assert all(d.name != "network" for d in plan.decisions)


def test_huge_images_in_little_memory_get_the_baseline_when_it_sees_twice_as_much() -> None:
    plan = plan_of(dataset(10**7, (400, 512, 512)), network="auto", device_memory_gb=8)
    made = network_decision(plan)
    sees_more = made.inputs["baseline_patch_larger"] >= 2 and made.inputs["scan_patch_sees"] < 0.05
    assert plan.default.network.name == ("plain_unet" if sees_more else "vm_unet")
