"""Pilot trainings: the candidates are compared case by case, and the plan says which one was taken and why."""

from __future__ import annotations

import json
import math

import pytest

import medmamba
from medmamba.errors import ConfigError, InputError
from medmamba.planning.pilot import Trial, choose, table_lines
from medmamba.plans.options import PlanRequest


def trial(network: str, *dice: float) -> Trial:
    return Trial(network, 100, 1.0, {f"case_{number}": value for number, value in enumerate(dice)})


def test_the_best_is_chosen_and_named_with_the_others():
    decision = choose([trial("vm_unet", 0.5, 0.7), trial("plain_unet", 0.6, 0.8), trial("hrvmamba", 0.1, 0.1)], 6)
    assert decision.value == "plain_unet"
    assert decision.reason == "After 2 minutes each, plain_unet has Dice 0.700 (vm_unet 0.600, hrvmamba 0.100)."


def test_the_first_is_kept_when_the_best_is_hardly_better():
    decision = choose([trial("vm_unet", 0.600), trial("plain_unet", 0.604)], 6)
    assert decision.value == "vm_unet"
    assert "too close to leave the default" in decision.reason


def test_a_network_that_found_nothing_loses_against_one_that_found_something():
    assert choose([trial("vm_unet", math.nan), trial("plain_unet", 0.1)], 1).value == "plain_unet"
    assert choose([trial("vm_unet", math.nan), trial("plain_unet", math.nan)], 1).value == "vm_unet"


def test_the_table_is_paired_with_the_first():
    lines = table_lines([trial("vm_unet", 0.5, 0.7), trial("plain_unet", 0.6, 0.6)])
    assert lines[0].split()[:4] == ["network", "steps", "Dice", "difference"]
    assert lines[1].split() == ["vm_unet", "100", "0.6000"]
    assert lines[2].split()[:4] == ["plain_unet", "100", "0.6000", "+0.0000"]
    assert lines[2].split()[-2:] == ["1", "1"]


def test_the_table_fits_80_columns_and_cuts_no_number():
    """Networks of other packages may have long names."""
    names = ("vm_unet", "residual_unet", "laboratory.networks.attention_with_a_long_name_unet")
    lines = table_lines([trial(name, 0.5, 0.7 + 0.01 * n) for n, name in enumerate(names)])
    assert max(map(len, lines)) <= 80
    assert len(lines) == 4
    assert lines[3].split()[:4] == ["laborato…ame_unet", "100", "0.6100", "+0.0100"]
    assert lines[3].endswith("+0.0200  1       0")


def test_what_cannot_be_compared_is_refused(small_dataset, tmp_path):
    with pytest.raises(ConfigError, match="--pilot 0 must be above 0"):
        medmamba.plan(small_dataset, tmp_path / "run", pilot=0)
    with pytest.raises(ConfigError, match="compares networks, and got 1"):
        medmamba.plan(small_dataset, tmp_path / "run", pilot=1, network="plain_unet")
    with pytest.raises(ConfigError, match="Did you mean 'vm_unet'"):
        medmamba.plan(small_dataset, tmp_path / "run", pilot=1, network="vmunet,plain_unet")
    with pytest.raises(ConfigError, match="needs two patients or more"):
        medmamba.plan(small_dataset, tmp_path / "run", pilot=1, group_by="hippocampus")


def test_no_candidate_may_cost_the_trained_folds_of_the_run(small_dataset, tmp_path, monkeypatch):
    run = tmp_path / "run"
    medmamba.plan(small_dataset, run, network="vm_unet", patch_size=(16, 24, 16))
    (run / "models/3d_fullres/fold_0/checkpoints/last").mkdir(parents=True)
    monkeypatch.setattr("medmamba.planning.pilot.compare", lambda *rest: pytest.fail("trained before it was refused"))
    both = "vm_unet,plain_unet"
    with pytest.raises(InputError, match=r"name: 'vm_unet' then, 'plain_unet' now.*Use another run folder, or --over"):
        medmamba.plan(small_dataset, run, network=both, patch_size=(16, 24, 16), pilot=1)


def test_a_pilot_trains_both_and_writes_the_chosen_plan(small_dataset, tmp_path):
    run, told, read = tmp_path / "run", [], []
    options = PlanRequest(patch_size=(16, 24, 16), batch_size=2, pilot=0.02, network="plain_unet, vm_unet")
    seen = {"on_message": told.append, "on_item": lambda stage, done, total: read.append((stage, done))}
    plan = medmamba.plan(small_dataset, run, options, **seen)
    record = json.loads((run / "report" / "pilot.json").read_text())
    assert record["chosen"] == plan.default.network.name
    assert [row["network"] for row in record["trials"]] == ["plain_unet", "vm_unet"]
    assert all(row["steps"] >= 1 and len(row["dice"]) == 1 for row in record["trials"])
    decision = next(decision for decision in plan.decisions if decision.name == "network")
    assert decision.value == plan.default.network.name == plan.options.network
    assert not (run / "pilot").exists()
    assert len(read) == len(set(read))  # no case is measured or preprocessed twice
    assert any(line.startswith("vm_unet") for line in told)
