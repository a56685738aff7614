"""plain_unet and residual_unet are nnU-Net's PlainConvUNet and ResidualEncoderUNet: weights, logits, initial values."""

from __future__ import annotations

import json

import pytest
import torch
from nnunet_networks import NAMES, PLANS, build_theirs, golden, numbers, sample, their_weights
from torch import nn

from medmamba.errors import ConfigError
from medmamba.networks.build import build_network, network_facts
from medmamba.plans.families import RESIDUAL_BLOCKS, family
from medmamba.plans.network import planned_blocks

every_network = pytest.mark.parametrize("name", NAMES)
both_dimensions = pytest.mark.parametrize("dims", PLANS)

COUNTS = {
    ("mr_brain_4ch_skullstripped", "3d_fullres", "default"): 31_199_796,
    ("mr_brain_4ch_skullstripped", "3d_fullres", "resenc_m"): 102_353_972,
    ("mr_brain_4ch_skullstripped", "3d_fullres", "resenc_l"): 102_353_972,
    ("mr_brain_4ch_skullstripped", "3d_fullres", "resenc_xl"): 102_353_972,
    ("mr_prostate_2ch", "3d_fullres", "default"): 44_578_770,
    ("mr_prostate_2ch", "3d_fullres", "resenc_m"): 140_403_602,
    ("mr_prostate_2ch", "3d_fullres", "resenc_l"): 140_403_602,
    ("mr_prostate_2ch", "3d_fullres", "resenc_xl"): 140_403_602,
    ("photo_2d_rgb", "2d", "default"): 46_325_134,
    ("photo_2d_rgb", "2d", "resenc_m"): 105_917_388,
    ("photo_2d_rgb", "2d", "resenc_l"): 140_017_614,
    ("photo_2d_rgb", "2d", "resenc_xl"): 140_017_614,
}
"""Parameters of the networks of dynamic-network-architectures 0.4.4, built on 2026-11-30 from the plans of nnU-Net
2.8.1 in tests/data/planner_cases; test_their_package_counts_the_same counts again where the package is installed."""


def arguments_of_plan(dataset: str, configuration: str, planner: str) -> dict:
    """Arguments of ``build_network`` for a plan of nnU-Net's."""
    from pathlib import Path

    case = json.loads((Path(__file__).parent.parent / "data" / "planner_cases" / f"{dataset}.json").read_text())
    variants = case["expected"]["variants"]
    numbers = next(v for v in variants if v["planner"] == planner)["configurations"][configuration]
    return {
        "name": "plain_unet" if planner == "default" else "residual_unet",
        "spatial_dims": len(numbers["patch_size"]),
        "in_channels": len(case["dataset"]["channel_names"]),
        "out_channels": len(case["dataset"]["labels"]),
        "strides": numbers["strides"],
        "kernels": numbers["kernel_sizes"],
        "features_per_stage": numbers["features_per_stage"],
        "blocks_per_stage": numbers["blocks_per_stage_encoder"],
        "decoder_convs": numbers["blocks_per_stage_decoder"],
        "deep_supervision": True,
    }


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("plan", COUNTS, ids="-".join)
def test_parameters_are_those_of_nnunet(plan: tuple[str, str, str]) -> None:
    with torch.device("meta"):
        assert count(build_network(**arguments_of_plan(*plan))) == COUNTS[plan]


@pytest.mark.parametrize("plan", COUNTS, ids="-".join)
def test_their_package_counts_the_same(plan: tuple[str, str, str]) -> None:
    pytest.importorskip("dynamic_network_architectures")
    with torch.device("meta"):
        assert count(build_theirs(arguments_of_plan(*plan))) == COUNTS[plan]


def compare(name: str, dims: int, given: dict) -> None:
    network = build_network(**numbers(name, dims))
    network.load_state_dict({key: value for key, value in given.items() if key in network.state_dict()})
    assert given.keys() - network.state_dict().keys() == {"image", "logits.0", "logits.1"}
    with torch.no_grad():
        for number, logits in enumerate(network(given["image"])):
            torch.testing.assert_close(logits, given[f"logits.{number}"], rtol=1e-5, atol=1e-5)
        finest = network.eval()(given["image"])
    torch.testing.assert_close(finest, given["logits.0"], rtol=1e-5, atol=1e-5)


@every_network
@both_dimensions
def test_their_weights_give_their_logits(name: str, dims: int) -> None:
    compare(name, dims, golden(name, dims))


@every_network
@both_dimensions
def test_their_package_gives_the_same_logits_today(name: str, dims: int) -> None:
    pytest.importorskip("dynamic_network_architectures")
    compare(name, dims, sample(name, dims))


@every_network
def test_initial_weights_are_drawn_as_theirs(name: str) -> None:
    pytest.importorskip("dynamic_network_architectures")
    given = numbers(name, 3) | {"features_per_stage": [32, 48, 64]}
    theirs = build_theirs(given)
    theirs.apply(theirs.initialize)
    wanted = their_weights(theirs, 3)
    for key, value in build_network(**given).state_dict().items():
        spread = wanted[key].std() if wanted[key].numel() > 1 else torch.zeros(())
        torch.testing.assert_close(value.std() if value.numel() > 1 else spread, spread, rtol=0.2, atol=1e-6)
        torch.testing.assert_close(value.mean(), wanted[key].mean(), rtol=0, atol=0.1 * float(spread) + 0.05)


def test_convolutions_begin_as_he_for_the_leaky_relu_and_residual_blocks_as_their_shortcut() -> None:
    torch.manual_seed(0)
    network = build_network(**numbers("residual_unet", 3) | {"features_per_stage": [32, 48, 64]})
    weight = network.encoder[2][1].first.conv.weight
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (64 * 27)) ** 0.5, rel=0.02)
    block, x = network.encoder[2][1], torch.rand(1, 64, 4, 4, 4)
    assert torch.equal(block(x), x)


@every_network
def test_blocks_of_the_plan_are_built_and_planned(name: str) -> None:
    """1, 1, 1, 1 and 1, 3, 4, 6 had been one network."""
    sizes = [
        count(build_network(**numbers(name, 2) | {"blocks_per_stage": blocks})) for blocks in ([1, 1, 1], [1, 3, 4])
    ]
    assert sizes[0] < sizes[1]
    strides = [[1, 1]] + [[2, 2]] * 4
    planned = planned_blocks(family(name), strides, "conv")
    assert planned == ([2] * 5 if name == "plain_unet" else list(RESIDUAL_BLOCKS[:5]))
    assert family(name).decoder_convs == network_facts(name).options["decoder_convs"].default
    given = {key: value for key, value in numbers(name, 2).items() if key not in ("blocks_per_stage", "kernels")}
    given |= {"strides": strides, "features_per_stage": [2] * 5, "decoder_convs": 1}
    assert count(build_network(**given)) == count(build_network(**given, blocks_per_stage=planned))


def test_one_voxel_in_the_bottleneck_is_predicted() -> None:
    for name in NAMES:
        assert build_network(**numbers(name, 2)).eval()(torch.rand(1, 2, 4, 2)).shape == (1, 3, 4, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks_per_stage": [2, 0, 1]}, r"blocks_per_stage must be at least 1 in every stage, got \[2, 0, 1\]"),
        ({"decoder_convs": [1]}, r"decoder_convs must be 2 numbers from 1 to 128, one per stage, got \[1\]"),
        ({"decoder_convs": [1, 0]}, r"decoder_convs must be 2 numbers .*, got \[1, 0\]"),
    ],
)
def test_what_cannot_be_built_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_network(**numbers("plain_unet", 2) | changes)
