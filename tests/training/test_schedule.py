"""Length and learning rate, against nnU-Net's own figures where it has them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from medmamba.errors import ConfigError
from medmamba.networks.build import build_network
from medmamba.training.batches import must_show_foreground
from medmamba.training.config import TrainConfig
from medmamba.training.losses import deep_supervision_weights
from medmamba.training.step import SCAN_PARAMETERS, budget_used, learning_rate, make_optimizer, set_rate

CASES = json.loads((Path(__file__).parents[1] / "data" / "planner_cases" / "function_cases.json").read_text())


@pytest.mark.parametrize("case", CASES["poly_lr"])
def test_learning_rate_is_nnunets(case):
    config = TrainConfig(learning_rate=case["initial_lr"], warmup_steps=0)
    rate = learning_rate(config, case["epoch"], case["epoch"] / case["epochs"])
    assert rate == pytest.approx(case["lr"], rel=1e-9)


@pytest.mark.parametrize("case", CASES["deep_supervision_weights"])
def test_deep_supervision_weights_are_nnunets(case):
    assert deep_supervision_weights(case["n_outputs"]) == pytest.approx(case["weights"])


@pytest.mark.parametrize("case", CASES["oversampled_indices"])
def test_the_same_samples_of_a_batch_must_show_foreground_as_in_nnunet(case):
    forced = [i for i in range(case["batch_size"]) if must_show_foreground(i, case["batch_size"])]
    assert forced == case["foreground_sample_indices"]


def test_the_schedule_ends_with_whichever_budget_ends_first():
    config = TrainConfig(steps=100, max_minutes=1)
    assert budget_used(config, 50, 0) == 0.5
    assert budget_used(config, 50, 45) == 0.75
    assert budget_used(config, 100, 0) == 1
    assert budget_used(config, 1, 61) == 1
    assert learning_rate(config, 100, 1.0) == 0


def test_a_budget_without_an_end_is_refused():
    assert TrainConfig(steps_per_epoch=2).total_steps == 2000
    with pytest.raises(ConfigError, match="max-minutes"):
        TrainConfig.of(max_minutes=0)


def test_warm_up_rises_linearly():
    config = TrainConfig(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(config, step, 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def wide_network():
    numbers = {"strides": [[1, 1], [2, 2], [2, 2]], "features_per_stage": [8, 64, 256], "blocks_per_stage": [1, 1, 1]}
    return build_network("vm_unet", spatial_dims=2, in_channels=1, out_channels=2, **numbers)


def moved_by_one_step(network, optimizer_name):
    """How far each parameter moves at a rate of 1e-3, as the largest change of its elements."""
    network = deepcopy(network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = make_optimizer(network, TrainConfig(optimizer=optimizer_name, weight_decay=0))
    set_rate(optimizer, 1e-3)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {name: float((p.detach() - before[name]).abs().max()) for name, p in network.named_parameters()}


def test_wide_linear_maps_learn_more_slowly_under_adam(wide_network):
    moved = moved_by_one_step(wide_network, "adamw")
    inputs = {name: p.shape[-1] for name, p in wide_network.named_parameters() if p.ndim in (2, 3)}
    wide = {name for name in inputs if name.rsplit(".", 1)[-1] not in SCAN_PARAMETERS and inputs[name] > 64}
    assert {name.rsplit(".", 2)[-2] for name in wide} == {"in_proj", "out_proj", "scan"}
    for name, distance in moved.items():
        expected = 1e-3 * (64 / inputs[name] if name in wide else 1)
        assert distance == pytest.approx(expected, rel=5e-3), name


def test_nothing_is_scaled_under_sgd(wide_network):
    moved = moved_by_one_step(wide_network, "sgd")
    assert len({round(distance, 6) for distance in moved.values()}) == 1
