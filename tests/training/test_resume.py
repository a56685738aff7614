"""Resuming: a run in parts equals a whole one to the bit, keeps its recipe, and refuses another plan or network."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fold_files import SHORT, epoch_losses, fold_of, hashes_of

import medmamba
from medmamba import pipeline
from medmamba.compute import device as compute_device
from medmamba.errors import ConfigError
from medmamba.models.checkpoint import read_state
from medmamba.models.network import network_arguments
from medmamba.models.run_folder import read_plan
from medmamba.plans.json_record import SEAL
from medmamba.training.config import TrainConfig, make_config
from medmamba.training.fold import arguments_to_resume, stored_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param({}, marks=pytest.mark.slow),  # as interrupted by a signal: test_interrupts.py
        {"ema": 0.9, "augment": "device"},
        pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),  # fp16 has its own scale besides
        {"precision": "fp16", "validation_cases": 1},
    ],
    ids=["plain", "ema and augmented in batches", "bf16", "fp16"],
)
def test_a_run_in_two_parts_equals_a_whole_one_to_the_bit(clinic_run, tmp_path, extra):
    other = tmp_path / "other"
    shutil.copytree(clinic_run, other)
    config = TrainConfig(steps=4, deterministic=True, **SHORT, **extra)
    whole, parts = [], []
    pipeline.train(clinic_run, config=config, on_step=lambda r: whole.append(r.loss.hex()))

    def stop(report):
        parts.append(report.loss.hex())
        if report.step == 3:  # in the middle of an epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.train(other, config=config, on_step=stop)
    pipeline.train(
        other,
        config=config.model_copy(update={"workers": 1}),
        resume=True,
        on_step=lambda r: parts.append(r.loss.hex()),
    )
    assert parts == whole
    assert hashes_of(other) == hashes_of(clinic_run)
    assert epoch_losses(other) == epoch_losses(clinic_run)


def _step_of(state):
    try:
        return json.loads(state.read_text())["progress"]["step"]
    except (FileNotFoundError, ValueError):  # just being replaced
        return -1


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_it_never_was(clinic_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(clinic_run, other)
    options = ["--steps", "200", "--steps-per-epoch", "50", "--deterministic", "--checkpoint-minutes", "0.005"]
    start = [sys.executable, "-c", "from medmamba.cli.main import run; run()", "train"]
    subprocess.run([*start, clinic_run, *options, "--workers", "1"], cwd=ROOT, check=True, capture_output=True)
    chance, last, stopped = random.Random(4), fold_of(other) / "checkpoints" / "last" / "state.json", []
    for workers in (0, 1, 2, 0, 1):
        resume = ["--resume"] if stopped else []
        until = (stopped[-1] if stopped else 0) + chance.randint(1, 35)
        child = subprocess.Popen(
            [*start, other, *options, "--workers", str(workers), *resume],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while child.poll() is None and (not last.exists() or _step_of(last) < until):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))  # any moment: in a step, a validation, the middle of a checkpoint
        child.kill()
        child.communicate(timeout=600)  # waits for the data workers too, which hold the other end of stderr
        stopped.append(read_state(last.parent)["progress"]["step"])
    assert stopped == sorted(set(stopped))
    assert stopped[-1] < 200, stopped
    print("killed after the checkpoints of steps", stopped)
    subprocess.run([*start, other, *options, "--workers", "2", "--resume"], cwd=ROOT, check=True, capture_output=True)
    assert hashes_of(other) == hashes_of(clinic_run)
    print(epoch_losses(other), hashes_of(other)["model.safetensors"])
    assert len(epoch_losses(clinic_run)) == 4
    assert epoch_losses(other) == epoch_losses(clinic_run)


def test_a_resumed_run_keeps_its_recipe_and_refuses_another(clinic_run):
    config = TrainConfig(steps=2, learning_rate=2e-3, seed=5, **SHORT)
    pipeline.train(clinic_run, config=config)
    stored = stored_config(fold_of(clinic_run))
    longer = make_config({"steps": 4}, stored)
    assert (longer.learning_rate, longer.seed, longer.steps) == (2e-3, 5, 4)
    rates = []
    again = pipeline.train(clinic_run, config=longer, resume=True, on_step=lambda r: rates.append(r.learning_rate))
    assert again.steps == 4
    assert rates == pytest.approx([2e-3 * 0.5**0.9, 2e-3 * 0.25**0.9])  # the schedule of 4 steps from its middle on
    with pytest.raises(ConfigError, match=r"another recipe: learning_rate was 0\.002, now 0\.1"):
        make_config({"learning_rate": 0.1}, stored)


@pytest.mark.parametrize(("fast", "chosen"), [(False, "fp32"), (True, "bf16")])
def test_a_run_keeps_the_precision_of_the_machine_it_began_on(clinic_run, monkeypatch, fast, chosen):
    config = TrainConfig(steps=1, **SHORT)
    assert config.precision == "auto"
    monkeypatch.setattr(compute_device, "cpu_multiplies_bf16", lambda: fast)
    pipeline.train(clinic_run, config=config.model_copy(update={"device": "cpu"}))
    assert (stored_config(fold_of(clinic_run)).precision, stored_config(fold_of(clinic_run)).augment) == (chosen, "cpu")
    monkeypatch.setattr(compute_device, "cpu_multiplies_bf16", lambda: not fast)  # "another machine"
    events = []
    longer = make_config({"steps": 2, "precision": "auto"}, stored_config(fold_of(clinic_run)))
    pipeline.train(clinic_run, config=longer, resume=True, on_event=events.append)
    state = read_state(fold_of(clinic_run) / "checkpoints" / "last")
    assert state["config"]["precision"] == stored_config(fold_of(clinic_run)).precision == chosen
    told = [line for line in events if "only imitates" in line]
    assert len(told) == (chosen == "bf16")
    with pytest.raises(ConfigError, match=f"precision was '{chosen}', now 'fp16'"):
        make_config({"precision": "fp16"}, stored_config(fold_of(clinic_run)))


def test_a_resumed_run_refuses_another_plan_and_another_network_by_name(clinic_run):
    pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT))
    with pytest.raises(ConfigError, match=r"another network \(name"):
        pipeline.train(clinic_run, network="residual_unet", resume=True)
    plan = json.loads((clinic_run / "plan.json").read_text())
    plan["configurations"]["3d_fullres"]["batch_size"] = 3
    (clinic_run / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"another plan \(.*batch.*2 then, 3 now"):
        pipeline.train(clinic_run, resume=True)


def test_a_fold_is_resumed_with_a_plan_of_other_reasons_and_further_configurations(clinic_run):
    """As a later version plans it: reasons, measured facts and what was not decided before may differ."""
    pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT))
    plan = json.loads((clinic_run / "plan.json").read_text())
    part = plan["configurations"]["3d_fullres"]
    part["decisions"][0]["reason"] = "Written in other words."
    plan |= {"medmamba_version": "0.0.1", "fingerprint_hash": "f" * 64}
    plan["configurations"]["mine"] = {**part, "name": "mine", "batch_size": 4}
    (clinic_run / "plan.json").write_text(json.dumps(plan))
    pipeline.train(clinic_run, config=TrainConfig(steps=2, **SHORT), resume=True)
    assert read_state(fold_of(clinic_run) / "checkpoints" / "last")["progress"]["step"] == 2
    assert read_plan(fold_of(clinic_run) / "plan.json").medmamba_version == "0.0.1"
    medmamba.Predictor(clinic_run)  # hashes of fold and plan fit together again


def test_other_versions_are_named_on_resuming(clinic_run):
    pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT))
    state_path = fold_of(clinic_run) / "checkpoints" / "last" / "state.json"
    state = json.loads(state_path.read_text())
    del state[SEAL]  # as if that version had written it
    state["versions"]["torch"] = "1.0"
    state_path.write_text(json.dumps(state))
    with pytest.warns(UserWarning, match=r"torch 1\.0, now"):
        pipeline.train(clinic_run, config=TrainConfig(steps=2, **SHORT), resume=True)


def test_an_optimiser_grouped_by_another_version_is_refused(clinic_run):
    pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT))
    state_path = fold_of(clinic_run) / "checkpoints" / "last" / "state.json"
    state = json.loads(state_path.read_text())
    del state[SEAL]
    for group in state["optimizer"]["param_groups"]:
        del group["scale"]
    state_path.write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="Continue with the version that began"):
        pipeline.train(clinic_run, config=TrainConfig(steps=2, **SHORT), resume=True)


@pytest.mark.parametrize("name", ["plain_unet", "residual_unet"])
def test_a_convolution_unet_of_before_is_resumed_as_what_it_was(clinic_run, tmp_path, name) -> None:
    """Their records have no decoder_convs; the network of now has other weights."""
    plan = read_plan(clinic_run / "plan.json")
    now = network_arguments(plan, plan.default, network=name)
    before = {key: value for key, value in now.items() if key != "decoder_convs"}
    before["blocks_per_stage"] = [2] * len(now["strides"])
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "model.json").write_text(
        json.dumps({"network": before, "configuration": plan.default_configuration, "plan_sha256": "", "fold": "0"})
    )
    assert arguments_to_resume(tmp_path, plan, now) == before
    with pytest.raises(ConfigError, match=r"another network \(name"):
        arguments_to_resume(tmp_path, plan, now | {"name": "vm_unet"})
    (tmp_path / "model.json").write_text(
        json.dumps({"network": now, "configuration": plan.default_configuration, "plan_sha256": "", "fold": "0"})
    )
    assert arguments_to_resume(tmp_path, plan, now) == now


def test_a_u_mamba_bot_of_before_is_resumed_with_blocks_never_built(clinic_run, tmp_path) -> None:
    plan = read_plan(clinic_run / "plan.json")
    now = network_arguments(plan, plan.default, network="u_mamba_bot")
    before = {**now, "blocks_per_stage": [2] * (len(now["strides"]) - 1) + [now["blocks_per_stage"][-1]]}
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "model.json").write_text(
        json.dumps({"network": before, "configuration": plan.default_configuration, "plan_sha256": "", "fold": "0"})
    )
    assert arguments_to_resume(tmp_path, plan, now) == before
    (tmp_path / "model.json").write_text(
        json.dumps(
            {
                "network": {**before, "blocks_per_stage": [9]},
                "configuration": plan.default_configuration,
                "plan_sha256": "",
                "fold": "0",
            }
        )
    )
    with pytest.raises(ConfigError, match=r"another network \(blocks_per_stage"):
        arguments_to_resume(tmp_path, plan, now)


def test_the_fields_of_a_recipe_are_changes_by_name(clinic_run):
    result = pipeline.train(clinic_run, **{**SHORT, "device": "cpu"}, steps=1, learning_rate=0.002, loss="dice_focal")
    stored = stored_config(result.folder)
    assert (stored.steps, stored.learning_rate, stored.loss) == (1, 0.002, "dice_focal")
    longer = pipeline.train(clinic_run, steps=2, resume=True)
    assert longer.steps == 2
    assert stored_config(result.folder).learning_rate == 0.002
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.002, now 0\.1"):
        pipeline.train(clinic_run, learning_rate=0.1, resume=True)
    config = TrainConfig(**{**SHORT, "device": "cpu"}, seed=3)
    again = pipeline.train(clinic_run, config=config, steps=1, restart=True)
    assert (stored_config(again.folder).seed, again.steps) == (3, 1)


@pytest.mark.parametrize(
    ("change", "meant"), [("step", "steps"), ("folds", "fold"), ("devices", "device"), ("max_minute", "max_minutes")]
)
def test_an_unknown_change_lists_what_a_training_of_one_fold_takes(clinic_run, change, meant):
    with pytest.raises(ConfigError, match=f"Unknown option '{change}'. Did you mean '{meant}'") as caught:
        pipeline.train(clinic_run, **{change: 1})
    offered = str(caught.value).partition("Available: ")[2].rstrip(".").split(", ")
    assert {"steps", "resume", "fold"} <= set(offered)
    assert not {"folds", "devices", "max_hours"} & set(offered)
