"""Length and learning rate, against nnU-Net's own figures where it has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmamba.training.losses import deep_supervision_weights
from medmamba.training.sampling import must_show_foreground
from medmamba.training.schedule import Budget, poly_rate, warmed_up

CASES = json.loads((Path(__file__).parents[1] / "data" / "planner_cases" / "function_cases.json").read_text())


@pytest.mark.parametrize("case", CASES["poly_lr"])
def test_learning_rate_is_nnunets(case):
    rate = poly_rate(case["initial_lr"], case["epoch"] / case["epochs"])
    assert rate == pytest.approx(case["lr"], rel=1e-9)


@pytest.mark.parametrize("case", CASES["deep_supervision_weights"])
def test_deep_supervision_weights_are_nnunets(case):
    assert deep_supervision_weights(case["n_outputs"]) == pytest.approx(case["weights"])


@pytest.mark.parametrize("case", CASES["oversampled_indices"])
def test_the_same_samples_of_a_batch_must_show_foreground_as_in_nnunet(case):
    forced = [i for i in range(case["batch_size"]) if must_show_foreground(i, case["batch_size"])]
    assert forced == case["foreground_sample_indices"]


def test_the_schedule_ends_with_whichever_budget_ends_first():
    budget = Budget(steps=100, minutes=1)
    assert budget.progress(50, 0) == 0.5
    assert budget.progress(50, 45) == 0.75
    assert budget.progress(100, 0) == 1
    assert budget.progress(1, 61) == 1
    assert poly_rate(0.1, 1.0) == 0


def test_a_budget_without_an_end_is_refused():
    with pytest.raises(ValueError, match="steps or minutes"):
        Budget()
    with pytest.raises(ValueError, match="positive"):
        Budget(minutes=0)


def test_warm_up_rises_linearly():
    assert [warmed_up(1.0, step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
