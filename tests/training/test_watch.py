"""What a person sees of a training and who else is told; when advice is given."""

from __future__ import annotations

import io
import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from medmamba.cli import console
from medmamba.errors import ConfigError, MedmambaError
from medmamba.training import observers, workers
from medmamba.training.batches import Batch
from medmamba.training.config import TrainConfig
from medmamba.training.fold import train
from medmamba.training.guard import STOP_AFTER, FiniteGuard, MemorySettings, collapse_advice, smaller_fit
from medmamba.training.observers import closing_lines, open_tracker
from medmamba.training.progress import EpochMetrics, EpochSoFar, Progress, StepReport, TrainingResult

ROWS = [{"epoch": n, "step": 10 * n, "loss": 1 / n, "validation_dice": None, "liver": 0.1 * n} for n in (1, 2)]
EPOCHS = [EpochMetrics.from_row(row) for row in ROWS]


def test_the_line_says_step_loss_dice_speed_time_left_and_waiting(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, width=200))
    with console.training_progress() as report:
        report(StepReport(50, 200, 0.75, 1e-3, 0.8125, 0.25, 25.0, waiting=0.3))
        report(StepReport(51, 200, 0.70, 1e-3, 0.8125, 0.255, 26.0))  # too soon for another line
    assert shown.getvalue().count("\n") == 1
    for words in ("25%", "step 50/200", "loss 0.750", "Dice 0.812", "2.00 steps/s", "left", "30% waiting for data"):
        assert words in shown.getvalue()


def test_collapse_is_told_after_three_epochs_with_what_is_wrong():
    assert collapse_advice([0.0, 0.0], 0.0) is None
    assert collapse_advice([0.0, 0.0, 0.02], 0.0) is None
    assert collapse_advice([0.0, None, 0.0], 0.0) is None
    assert "everything is predicted as background" in str(collapse_advice([0.5, 0.0, 0.0, 0.0], 0.0))
    assert "everything is predicted as foreground" in str(collapse_advice([0.0] * 3, 0.9))
    assert "nowhere near the truth" in str(collapse_advice([0.0] * 3, 0.1))
    assert "--sampling lesion" in str(collapse_advice([0.0] * 3, 0.1))


def test_steps_that_are_not_finite_lower_the_rate_then_stop_with_the_batch_on_disk(tmp_path):
    image = torch.zeros(2, 1, 4, 4)
    image[1] = torch.inf
    batch = Batch(7, image, torch.zeros(2, 1, 4, 4, dtype=torch.int64), ("a", "b"))
    guard = FiniteGuard()
    steps = [False, False, True, False, False, False] + [False] * (STOP_AFTER - 4)
    told = [guard.after_step(finite, batch, tmp_path) for finite in steps]
    assert "lowered to 0.5" in str(told.pop(5))
    assert told == [None] * len(told)
    with pytest.raises(MedmambaError, match=r"stopped at step 7.*the image of b holds NaN or Inf.*bad_batch"):
        guard.after_step(False, batch, tmp_path)
    with safe_open(tmp_path / "bad_batch.safetensors", "pt") as file:
        assert file.metadata() == {"cases": "a, b", "step": "7"}
        assert torch.equal(file.get_tensor("image"), image)


def test_memory_is_given_up_in_order_batch_recomputing_patch():
    fit, seen = MemorySettings(4, (64, 32), False), []
    for _ in range(4):
        fit = smaller_fit(fit, (8, 8), can_recompute=True)
        seen.append((fit.batch_size, fit.recompute, fit.patch_size))
    assert seen == [(2, False, (64, 32)), (1, False, (64, 32)), (1, True, (64, 32)), (1, True, (48, 32))]
    with pytest.raises(MedmambaError, match="Out of memory even with batch 1, patch 16 x 16, activations recomputed"):
        smaller_fit(MemorySettings(1, (16, 16), True), (8, 8), can_recompute=True)


def test_time_spent_waiting_for_data_is_measured(monkeypatch):
    now = [0.0]

    def batch(step):
        now[0] += 3.0
        return step

    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    done = Progress(seconds=20.0, epoch=EpochSoFar(began=20.0))
    source = SimpleNamespace(first_step=4, batch=batch)
    with closing(workers.SupervisedWorkers(source, 0, stall_seconds=9, place=lambda batch: batch)) as stream:
        for step in (4, 5):
            assert next(stream) == step
            now[0] += 1.0  # the step itself
            done.epoch.add_step(stream.last_wait)
            done.epoch.add_outcome(0.5, None)
            done.seconds += 4.0
    assert done.waiting == 0.75
    assert Progress.from_json(json.loads(json.dumps(done.as_json()))) == done


def test_the_last_lines_say_what_came_out_and_what_to_do_next(tmp_path):
    result = TrainingResult(
        tmp_path,
        steps=500,
        seconds=250.0,
        final_loss=0.4,
        validation_dice=0.6,
        best_dice=0.6,
        best_epoch=2,
        epochs=2,
        by_name={"liver": 0.9, "tumour": 0.3},
        waiting=0.4,
    )
    text = "\n".join(closing_lines(result, Path("RUN")))
    for words in (
        "500 steps in 4.2 min (2.00 steps/s, 40% of the time waiting for data)",
        "Validation Dice on whole volumes: 0.6000; best epoch 2",
        "tumour is weak",
        "more --workers",
        "The best epoch was the last one",
        "Next: medmamba predict RUN IMAGES -o MASKS",
    ):
        assert words in text
    alike = replace(result, by_name={"liver": 0.4, "tumour": 0.3}, best_epoch=1, epochs=1, validation_seconds=125.0)
    text = "\n".join(closing_lines(alike, Path("RUN")))
    assert "is weak" not in text
    assert "best epoch was the last" not in text
    assert "(4.00 steps/s" in text
    text = "\n".join(closing_lines(replace(result, best_epoch=0), Path("RUN")))
    assert "Validation Dice on whole volumes: 0.6000.\n" in text


@pytest.mark.parametrize("name", list(observers.TRACKERS))
def test_a_missing_tracker_is_named_with_its_install_command(name, tmp_path, monkeypatch):
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"--{name} needs a package .*pip install {name}"):
        open_tracker(name, tmp_path, tmp_path, TrainConfig())
    with pytest.raises(ConfigError, match="Unknown option 'clearml'"):
        train(tmp_path, clearml=True)


def test_a_tracker_that_cannot_start_is_one_line_and_one_that_fails_later_is_left_out(tmp_path, monkeypatch):
    calls = []

    def refuse(run, fold, config):
        raise RuntimeError("no account\nsecond line")

    def fail(numbers, step):
        calls.append(numbers)
        raise OSError("no route to host")

    monkeypatch.setitem(observers.TRACKERS, "wandb", refuse)
    with pytest.raises(ConfigError, match=r"--wandb: .*RuntimeError: no account\)\. Correct that, or leave --wandb"):
        open_tracker("wandb", tmp_path, tmp_path, TrainConfig())
    tracker = observers.Tracker(fail, lambda: None)
    with pytest.warns(UserWarning, match=r"no route to host.*continues without"):
        tracker.epoch(EPOCHS[0])
    tracker.epoch(EPOCHS[1])
    assert calls == [{"loss": 1.0, "liver": 0.1}]


def _logged(name, tmp_path):
    tracker = open_tracker(name, tmp_path / "my_run", tmp_path, TrainConfig(steps=7))
    for metrics in EPOCHS:
        tracker.epoch(metrics)
    tracker.event("not for trackers")
    tracker.close()


def test_tensorboard_events_read_back(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    _logged("tensorboard", tmp_path)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "liver"}
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("loss")] == [(10, 1.0), (20, 0.5)]


def test_mlflow_keeps_parameters_and_metrics_in_a_local_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    _logged("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("my_run").experiment_id])
    assert run.data.params["steps"] == "7"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(10, 1.0), (20, 0.5)]


def test_wandb_writes_a_run_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    _logged("wandb", tmp_path)
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    assert any(path.stat().st_size > 0 for path in run.glob("*.wandb"))


def test_speed_and_time_left_leave_validation_out():
    done = Progress(step=10, seconds=30.0, validation_seconds=20.0, epoch=EpochSoFar(steps=10))
    assert done.metrics(1e-3)[-1].steps_per_second == 1.0
    assert Progress.from_json(json.loads(json.dumps(done.as_json()))).training_seconds == 10.0  # resumed
    report = done.report(total_steps=20, used=0.5, loss=1.0, rate=1e-3)
    assert (report.steps_per_second, report.seconds_left) == (1.0, 10.0)
    assert done.report(total_steps=None, used=0.5, loss=1.0, rate=1e-3).seconds_left == 30.0  # of minutes: all counts
    done.end_epoch(done.metrics(1e-3)[-1])
    assert done.epoch.began == 10.0
