"""Ctrl-C, SIGTERM and SIGHUP: what is on disk afterwards goes on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fold_files import fold_of
from torch.optim.optimizer import register_optimizer_step_post_hook

from medmamba import pipeline
from medmamba.errors import ConfigError
from medmamba.models.checkpoint import read_state
from medmamba.training import epochs, pretrain
from medmamba.training.config import TrainConfig
from medmamba.training.fold import stored_config
from medmamba.training.folds import train_folds
from medmamba.training.machine import SecondInterrupt, deferred_interrupts
from medmamba.training.options import TrainOptions

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {"steps_per_epoch": 2, "workers": 0, "warmup_steps": 0, "deterministic": True}


class Stopped(BaseException):
    """What the handler of these tests raises."""


@pytest.fixture
def handled(request):
    """A handler of the signal that raises, as the command line's does."""

    def stop(number, frame):
        raise Stopped

    before = signal.signal(request.param, stop)
    yield request.param
    signal.signal(request.param, before)


def _last(run, fold=0):
    return read_state(fold_of(run, fold) / "checkpoints" / "last")


def _rows(run):
    rows = json.loads((fold_of(run) / "metrics.json").read_text())
    told_by_the_clock = ("seconds", "steps_per_second", "waiting_for_data")
    return [{key: value for key, value in row.items() if key not in told_by_the_clock} for row in rows]


def _signal_in_the_optimiser(number, at_step, times=1):
    """Registers what signals this process when the weights have just changed, and the step is not yet counted."""
    seen = [0]

    def raise_signal(*_):
        seen[0] += 1
        if seen[0] == at_step:
            for _ in range(times):
                signal.raise_signal(number)

    return register_optimizer_step_post_hook(raise_signal)


@pytest.fixture(scope="module")
def undisturbed(planned_clinic, tmp_path_factory):
    """Hashes of the weights and rows of the epochs of a training that nobody interrupts."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(planned_clinic, run)
    pipeline.train(run, config=TrainConfig(steps=4, **RECIPE))
    return _last(run)["sha256"], _rows(run)


@pytest.mark.parametrize("handled", [signal.SIGINT, signal.SIGHUP], indirect=True)
def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(clinic_run, undisturbed, handled):
    config = TrainConfig(steps=4, **RECIPE)
    hook = _signal_in_the_optimiser(handled, at_step=3)
    with pytest.raises(Stopped):
        pipeline.train(clinic_run, config=config)
    hook.remove()
    assert _last(clinic_run)["progress"]["step"] == 3
    pipeline.train(clinic_run, config=config, resume=True)
    assert (_last(clinic_run)["sha256"], _rows(clinic_run)) == undisturbed


def test_a_second_ctrl_c_ends_at_once_and_saves_no_half_step(clinic_run):
    config = TrainConfig(steps=4, **RECIPE)
    hook = _signal_in_the_optimiser(signal.SIGINT, at_step=3, times=2)
    with pytest.raises(SecondInterrupt):
        pipeline.train(clinic_run, config=config)
    hook.remove()
    assert not (fold_of(clinic_run) / "checkpoints" / "last").exists()


@pytest.mark.parametrize("at_step", [2, 4], ids=["between", "at the end"])
def test_an_epoch_interrupted_in_its_validation_is_validated_on_resuming(clinic_run, undisturbed, monkeypatch, at_step):
    config = TrainConfig(steps=4, **RECIPE)
    validate, asked = epochs.validate, [0]

    def interrupted(*arguments, **options):
        asked[0] += 1
        if 2 * asked[0] == at_step:
            raise KeyboardInterrupt
        return validate(*arguments, **options)

    monkeypatch.setattr(epochs, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(clinic_run, config=config)
    assert _last(clinic_run)["progress"]["step"] == at_step
    pipeline.train(clinic_run, config=config, resume=True)
    assert (_last(clinic_run)["sha256"], _rows(clinic_run)) == undisturbed


def test_a_training_out_of_patience_does_not_go_on_for_an_epoch_when_resumed(clinic_run):
    config = TrainConfig(steps=40, patience=2, learning_rate=1e-12, **RECIPE)
    ended = pipeline.train(clinic_run, config=config)
    assert ended.stopped_early
    again = pipeline.train(clinic_run, resume=True)
    assert again.stopped_early
    assert again.steps == ended.steps < 40


def test_pretraining_is_interrupted_between_steps_too(clinic_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(clinic_run, other)
    config = TrainConfig(steps=3, **RECIPE)
    pretrain.pretrain(clinic_run, config=config)
    hook = _signal_in_the_optimiser(signal.SIGINT, at_step=2)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(other, config=config)
    hook.remove()
    pretrain.pretrain(other, config=config, resume=True)
    states = [read_state(run / "pretrained" / "3d_fullres" / "checkpoints" / "last") for run in (clinic_run, other)]
    assert states[0]["sha256"] == states[1]["sha256"]
    rows = [json.loads((run / "pretrained" / "3d_fullres" / "metrics.json").read_text()) for run in (clinic_run, other)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert [row["step"] for row in rows[0]][-1] == 3
    assert 0 <= rows[0][0]["waiting_for_data"] <= 1


def test_handlers_are_as_before_and_an_error_does_not_swallow_an_interrupt():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupted_then_broken():
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError

    with pytest.raises(KeyboardInterrupt):
        interrupted_then_broken()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_resuming_several_folds_begins_those_that_had_not(clinic_run):
    with pytest.raises(ConfigError, match="nothing to resume here"):
        train_folds(clinic_run, TrainOptions(folds=(0, 1), resume=True), TrainConfig())
    train_folds(clinic_run, TrainOptions(folds=(0,)), TrainConfig(steps=2, seed=5, **RECIPE))
    results = train_folds(clinic_run, TrainOptions(folds=(0, 1), resume=True), TrainConfig(steps=3))
    assert [result.steps for result in results.values()] == [3, 3]
    assert stored_config(fold_of(clinic_run, 1)).seed == 5


def test_folds_that_begin_late_begin_with_the_weights_of_the_others(clinic_run):
    pipeline.train(clinic_run, fold="all", config=TrainConfig(steps=1, **RECIPE))
    model = fold_of(clinic_run, "all")
    train_folds(clinic_run, TrainOptions(folds=(0,), init=model), TrainConfig(steps=2, **RECIPE))
    with pytest.raises(ConfigError, match=r"Fold 0 began with the weights of another model.*fold 1 has not begun"):
        train_folds(clinic_run, TrainOptions(folds=(0, 1), resume=True), TrainConfig())
    train_folds(clinic_run, TrainOptions(folds=(0, 1), resume=True, init=model), TrainConfig(steps=3))
    assert (fold_of(clinic_run, 1) / "init.json").is_file()
    with pytest.raises(ConfigError, match="Choose one"):
        train_folds(clinic_run, TrainOptions(folds=(0, 1), resume=True, init=model), TrainConfig())
    pipeline.train(clinic_run, fold=1, config=TrainConfig(steps=1, **RECIPE), restart=True)
    assert not (fold_of(clinic_run, 1) / "init.json").exists()


@pytest.mark.slow
def test_folds_side_by_side_save_when_their_command_is_told_to_end(clinic_run):
    start = [sys.executable, "-c", "from medmamba.cli.main import run; run()", "train", str(clinic_run)]
    options = ["--fold", "0,1", "--devices", "cpu,cpu", "--workers", "0", "--steps-per-epoch", "2"]
    child = subprocess.Popen(
        [*start, *options, "--steps", "1000000"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while child.poll() is None and not all((fold_of(clinic_run, fold) / "metrics.json").exists() for fold in (0, 1)):
        time.sleep(0.1)
    child.terminate()
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 143, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert all(_last(clinic_run, fold)["progress"]["step"] >= 2 for fold in (0, 1))
