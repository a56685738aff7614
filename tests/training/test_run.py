"""Training as a whole: clinic labels, faults, budgets, resuming, what is left on disk."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

import medmamba
from medmamba import pipeline
from medmamba.compute import device as compute_device
from medmamba.disk.lock import FolderLock
from medmamba.errors import ConfigError, InputError, MedmambaError, PartialError, ResourceError
from medmamba.models.checkpoint import read_state
from medmamba.models.network import network_arguments
from medmamba.models.run_folder import read_plan
from medmamba.plans.json_record import SEAL
from medmamba.preprocessing.store import CaseReader, write_case
from medmamba.training import epochs, trainer
from medmamba.training.augmentation import augmentation_plan
from medmamba.training.batches import PatchRecipe, PatchSource
from medmamba.training.config import TrainConfig, make_config
from medmamba.training.fold import arguments_to_resume, stored_config
from medmamba.training.folds import train_folds
from medmamba.training.options import TrainOptions
from medmamba.training.workers import SupervisedWorkers

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"steps_per_epoch": 2, "workers": 0, "warmup_steps": 0}


def _fold(run, fold=0):
    return run / "models" / "3d_fullres" / f"fold_{fold}"


def _hashes(run, fold=0):
    return read_state(_fold(run, fold) / "checkpoints" / "last")["sha256"]


def _epoch_losses(run):
    return [row["loss"].hex() for row in json.loads((_fold(run) / "metrics.json").read_text())]


def test_clinic_labels_are_planned_trained_and_predicted_with_their_own_values(clinic_run, clinic_dataset, tmp_path):
    plan = read_plan(clinic_run / "plan.json")
    assert plan.left_right_pairs == [["left kidney", "right kidney"]]
    assert plan.default.mirroring.axes == [1, 2]
    assert plan.regions == {"left kidney": ["left kidney"], "right kidney": ["right kidney"]}
    reader = CaseReader(clinic_run / "preprocessed" / "3d_fullres" / "k_5")
    assert reader.annotated == (1,)
    assert set(reader.locations) == {1}  # neither ignored voxels nor what nobody looked for
    assert reader.annotated_voxels is not None
    config = TrainConfig(steps=30, learning_rate=1e-2, **{**SHORT, "steps_per_epoch": 30})
    pipeline.train(clinic_run, fold="all", config=config)
    image = clinic_dataset / "imagesTr" / "k_0.nii.gz"
    predictor = medmamba.Predictor(clinic_run)
    assert predictor.model.ensembles[0].window.mirror_axes == (1, 2)
    result = predictor.predict(image)
    assert {205, 420} <= set(np.unique(result.labels)) <= {0, 205, 420}
    truth = np.asarray(nib.load(clinic_dataset / "labelsTr" / "k_0.nii.gz").dataobj)
    known = truth != 9
    found, wanted = (result.labels > 0)[known], (truth > 0)[known]
    assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.6  # patches of 8 voxels cannot tell the sides


def test_everything_a_person_wants_to_see_is_on_disk(clinic_run):
    events = []
    config = TrainConfig(steps=4, ema=0.9, schedule="cosine", **SHORT)
    result = pipeline.train(clinic_run, fold=0, config=config, on_event=events.append)
    fold = _fold(clinic_run)
    rows = list(csv.DictReader((fold / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert 0 <= float(rows[0]["waiting_for_data"]) <= 1
    assert {"left kidney", "right kidney", "train_dice", "skipped_steps"} <= set(rows[0])
    assert json.loads((fold / "metrics.json").read_text())[1]["step"] == 4
    page = (clinic_run / "report" / "training.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    for name in ("curves.png", "examples.png"):
        assert (fold / name).read_bytes()[:4] == b"\x89PNG"
    assert result.peak_memory_gib > 0
    assert float(rows[-1]["learning_rate"]) < float(rows[0]["learning_rate"])
    assert (fold / "checkpoints" / "last" / "training.safetensors").is_file()


def test_an_epoch_that_the_budget_cuts_short_has_its_row_until_a_longer_run_fills_it(clinic_run, tmp_path):
    def rows(run):
        keys = ("epoch", "step", "loss", "validation_dice", "left kidney")
        return [tuple(row.get(key) for key in keys) for row in json.loads((_fold(run) / "metrics.json").read_text())]

    def rows_on_the_page(run):
        page = (run / "report" / "training.html").read_text()
        return page.split("<h2>Epochs</h2>")[1].split("</table>")[0].count("<tr>") - 1

    other = tmp_path / "other"
    shutil.copytree(clinic_run, other)
    options = {**SHORT, "schedule": "cosine", "validation_cases": 1}
    result = pipeline.train(clinic_run, config=TrainConfig(steps=3, **options))
    _, (epoch, step, _, dice, kidney) = rows(clinic_run)
    assert (epoch, step, dice, result.epochs) == (2, 3, result.validation_dice, 1)
    assert kidney == result.by_name["left kidney"]
    assert rows_on_the_page(clinic_run) == 2

    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.train(other, config=TrainConfig(steps=3, **options), on_step=stop)
    ((*_, loss, dice, kidney),) = rows(other)
    assert loss > 0
    assert (dice, kidney) == (None, None)  # not validated yet, and no result of another epoch
    pipeline.train(other, config=TrainConfig(steps=4, **options), resume=True)
    assert [row[:2] for row in rows(other)] == [(1, 2), (2, 4)]
    pipeline.train(other, config=TrainConfig(steps=1, **options), restart=True)
    assert [row[:2] for row in rows(other)] == [(1, 1)]
    assert rows_on_the_page(other) == 1  # none of the run before


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"ema": 0.9},
        pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),  # fp16 has its own scale besides
        {"augment": "device"},
        {"precision": "fp16"},
    ],
    ids=["plain", "ema", "bf16", "augmented in batches", "fp16"],
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
    assert _hashes(other) == _hashes(clinic_run)
    assert _epoch_losses(other) == _epoch_losses(clinic_run)


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
    chance, last, stopped = random.Random(4), _fold(other) / "checkpoints" / "last" / "state.json", []
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
    assert _hashes(other) == _hashes(clinic_run)
    print(_epoch_losses(other), _hashes(other)["model.safetensors"])
    assert len(_epoch_losses(clinic_run)) == 4
    assert _epoch_losses(other) == _epoch_losses(clinic_run)


def test_a_case_with_nan_is_skipped_then_stops_training_with_its_name_and_batch(clinic_run):
    folder = clinic_run / "preprocessed" / "3d_fullres"
    for path in folder.iterdir():
        image, labels = CaseReader(path).read_whole()
        if path.name == "k_2":
            image[:] = np.nan
        write_case(path, path.name, image, labels, chunk=(8, 8, 8))
    splits = json.loads((clinic_run / "splits.json").read_text())
    splits[0] = {"train": ["k_2"], "val": []}
    (clinic_run / "splits.json").write_text(json.dumps(splits))
    events = []
    with pytest.raises(MedmambaError, match=r"not finite in 10 steps in a row.*k_2 holds NaN.*bad_batch\.safetensors"):
        pipeline.train(clinic_run, config=TrainConfig(steps=50, **SHORT), on_event=events.append)
    assert any("learning rate is lowered to 0.5" in line for line in events)
    assert (_fold(clinic_run) / "bad_batch.safetensors").is_file()


def test_out_of_memory_gives_up_batch_then_patch_and_says_so(clinic_run, monkeypatch):
    one_step, shapes, events = trainer.Stepper.step, [], []

    def tight(self, batch, rate, **options):
        if batch.image.numel() > 8 * 8 * 8 - 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        shapes.append(tuple(batch.image.shape))
        return one_step(self, batch, rate, **options)

    monkeypatch.setattr(trainer.Stepper, "step", tight)
    # each axis can be halved once
    divisor = read_plan(clinic_run / "plan.json").default.network.divisor
    if max(8 // d for d in divisor) <= 2:
        with pytest.raises(MedmambaError, match="Out of memory even with batch 1"):
            pipeline.train(clinic_run, config=TrainConfig(steps=2, **SHORT), on_event=events.append)
    else:
        pipeline.train(clinic_run, config=TrainConfig(steps=2, **SHORT), on_event=events.append)
        assert max(math.prod(shape) for shape in shapes) < 512
    assert any("continuing with batch 1" in line for line in events)


@pytest.mark.slow
@pytest.mark.parametrize(("steps_per_epoch", "cut"), [(20, False), (10_000, True)], ids=["measured", "not measured"])
def test_the_last_validation_ends_inside_the_minutes_too(clinic_run, monkeypatch, steps_per_epoch, cut):
    splits = json.loads((clinic_run / "splits.json").read_text())
    splits[0] = {"train": ["k_0"], "val": ["k_1", "k_2", "k_3", "k_4"]}
    (clinic_run / "splits.json").write_text(json.dumps(splits))
    predict, one_step, now = epochs.predict_logits, trainer.Stepper.step, [0.0]

    def taking(seconds, work):
        def timed(*arguments, **options):
            now[0] += seconds
            return work(*arguments, **options)

        return timed

    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(trainer, "time", clock)
    monkeypatch.setattr(epochs, "time", clock)
    monkeypatch.setattr(epochs, "predict_logits", taking(2.5, predict))
    monkeypatch.setattr(trainer.Stepper, "step", taking(1.0, one_step))
    rates = []
    config = TrainConfig(max_minutes=1, warmup_steps=0, workers=0, steps_per_epoch=steps_per_epoch)
    result = pipeline.train(clinic_run, config=config, on_step=lambda report: rates.append(report.learning_rate))
    assert result.seconds <= 60 + cut * 2.5  # a volume under way is finished
    assert rates[-1] < 0.2 * rates[0]
    assert result.validation_dice is not None
    assert any("minutes were used up after" in line for line in result.events) == cut


def test_patience_ends_a_training_that_gets_no_better(clinic_run):
    config = TrainConfig(
        steps=40, patience=2, learning_rate=1e-12, validation_cases=1, **{**SHORT, "steps_per_epoch": 1}
    )
    result = pipeline.train(clinic_run, config=config)
    assert result.stopped_early
    assert result.steps < 40
    assert any("No better Dice in 2 epochs" in line for line in result.events)


def test_a_resumed_run_keeps_its_recipe_and_refuses_another(clinic_run):
    config = TrainConfig(steps=2, learning_rate=2e-3, seed=5, **SHORT)
    pipeline.train(clinic_run, config=config)
    stored = stored_config(_fold(clinic_run))
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
    assert (stored_config(_fold(clinic_run)).precision, stored_config(_fold(clinic_run)).augment) == (chosen, "cpu")
    monkeypatch.setattr(compute_device, "cpu_multiplies_bf16", lambda: not fast)  # "another machine"
    events = []
    longer = make_config({"steps": 2, "precision": "auto"}, stored_config(_fold(clinic_run)))
    pipeline.train(clinic_run, config=longer, resume=True, on_event=events.append)
    state = read_state(_fold(clinic_run) / "checkpoints" / "last")
    assert state["config"]["precision"] == stored_config(_fold(clinic_run)).precision == chosen
    told = [line for line in events if "only imitates" in line]
    assert len(told) == (chosen == "bf16")
    with pytest.raises(ConfigError, match=f"precision was '{chosen}', now 'fp16'"):
        make_config({"precision": "fp16"}, stored_config(_fold(clinic_run)))


def test_a_resumed_run_refuses_another_plan_and_another_network_by_name(clinic_run):
    pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT))
    with pytest.raises(ConfigError, match=r"another network \(name"):
        pipeline.train(clinic_run, network="residual_unet", resume=True)
    plan = json.loads((clinic_run / "plan.json").read_text())
    plan["configurations"]["3d_fullres"]["batch_size"] = 3
    (clinic_run / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"another plan \(.*batch.*2 then, 3 now"):
        pipeline.train(clinic_run, resume=True)


def test_other_versions_are_named_on_resuming(clinic_run):
    pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT))
    state_path = _fold(clinic_run) / "checkpoints" / "last" / "state.json"
    state = json.loads(state_path.read_text())
    del state[SEAL]  # as if that version had written it
    state["versions"]["torch"] = "1.0"
    state_path.write_text(json.dumps(state))
    with pytest.warns(UserWarning, match=r"torch 1\.0, now"):
        pipeline.train(clinic_run, config=TrainConfig(steps=2, **SHORT), resume=True)


def test_an_optimiser_grouped_by_another_version_is_refused(clinic_run):
    pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT))
    state_path = _fold(clinic_run) / "checkpoints" / "last" / "state.json"
    state = json.loads(state_path.read_text())
    del state[SEAL]
    for group in state["optimizer"]["param_groups"]:
        del group["scale"]
    state_path.write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="Continue with the version that began"):
        pipeline.train(clinic_run, config=TrainConfig(steps=2, **SHORT), resume=True)


def _kill_a_child_worker(number):
    """Send a signal to a data worker of this process: a child that multiprocessing started."""
    import multiprocessing

    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, number)


def _made_again(events):
    return [line for line in events if "made again" in line]


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSTOP, "was silent for 200 s")])
def test_a_dead_or_stuck_worker_is_named_and_its_batch_made_again(clinic_run, tmp_path, clock, number, words):
    other = tmp_path / "other"
    shutil.copytree(clinic_run, other)
    losses, undisturbed, events = [], [], []
    config = TrainConfig(
        steps=20, workers=1, stall_seconds=200, warmup_steps=0, steps_per_epoch=100, deterministic=True
    )
    clock.fast = lambda: number == signal.SIGSTOP and len(losses) > 1 and not _made_again(events)

    def disturb(report):
        losses.append(report.loss.hex())
        if report.step == 2:
            _kill_a_child_worker(number)

    pipeline.train(clinic_run, fold="all", config=config, on_step=disturb, on_event=events.append)
    assert any(words in line and "case k_" in line for line in _made_again(events)), events
    pipeline.train(other, fold="all", config=config, on_step=lambda r: undisturbed.append(r.loss.hex()))
    assert losses == undisturbed


def test_workers_read_cases_that_this_process_has_read_before(tmp_path):
    rng = np.random.default_rng(0)  # large enough to be read by several threads, if they were allowed
    image, labels = rng.normal(size=(1, 96, 96, 96)).astype(np.float32), rng.integers(0, 3, (96, 96, 96))
    write_case(tmp_path / "c", "c", image, labels, chunk=(96, 96, 96))
    reader = CaseReader(tmp_path / "c")
    assert np.array_equal(reader.read_whole()[0], image)
    events = []
    source = PatchSource([reader], PatchRecipe(augmentation_plan((48, 48, 48)), 2, seed=1, augment="none"))
    with closing(SupervisedWorkers(source, 1, stall_seconds=300, on_fault=events.append)) as stream:
        assert next(stream).image.shape == (2, 1, 48, 48, 48)
    assert not events


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSTOP, "was silent for 200 s")])
def test_a_worker_that_ends_in_the_middle_of_sending_a_batch_costs_no_batch(tmp_path, clock, number, words, count):
    image, labels = np.random.default_rng(0).normal(size=(1, 48, 48, 48)), np.ones((48, 48, 48), np.int16)
    write_case(tmp_path / "c", "c", image.astype(np.float32), labels, chunk=(48, 48, 48))
    recipe = PatchRecipe(augmentation_plan((40, 40, 40)), 1, seed=1, augment="none")  # more than a pipe holds
    source, events = PatchSource([CaseReader(tmp_path / "c")], recipe), []
    with closing(SupervisedWorkers(source, count, stall_seconds=200, on_fault=events.append)) as stream:
        clock.fast = lambda: number == signal.SIGSTOP and stream._step == 2 * count and not events
        notes, size = stream._notes / "0", -1
        while not notes.is_file() or notes.stat().st_size != size or f"step {2 * count}" not in notes.read_text():
            size = notes.stat().st_size if notes.is_file() else -1
            time.sleep(0.02)
        time.sleep(0.3)  # two batches are received; the third one fills the pipe, and the worker waits
        os.kill(stream._workers[0]._process.pid, number)
        batches = [next(stream) for _ in range(4 * count)]
    assert [batch.step for batch in batches] == list(range(4 * count))
    for batch in batches:
        same = source.batch(batch.step)
        assert torch.equal(batch.image, same.image)
        assert torch.equal(batch.label, same.label)
    assert len(events) == 1
    assert words in events[0]
    assert f"Batch {2 * count} is made again" in events[0]


def test_a_case_that_hangs_every_time_stops_training_and_is_named(clinic_run, tmp_path, clock, monkeypatch):
    read, hung, events = CaseReader.read_patch, tmp_path / "hung", []
    hung.touch()

    def hang(self, *arguments):
        if self.case_id == "k_2":
            with hung.open("a") as file:
                file.write("x")
            time.sleep(600)
        return read(self, *arguments)

    monkeypatch.setattr(CaseReader, "read_patch", hang)  # inherited by the workers
    clock.fast = lambda: hung.stat().st_size > len(_made_again(events))
    config = TrainConfig(steps=200, workers=1, stall_seconds=200, warmup_steps=0, steps_per_epoch=1000)
    with pytest.raises(ResourceError, match=r"was silent for 200 s at case k_2.*second for this batch"):
        pipeline.train(clinic_run, fold="all", config=config, on_event=events.append)
    assert any("case k_2" in line for line in _made_again(events))
    assert 2 * TrainConfig().stall_seconds < 60


def test_an_error_inside_a_worker_names_the_case(clinic_run):
    path = clinic_run / "preprocessed" / "3d_fullres" / "k_1" / "image.b2nd"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="case k_1"):
        pipeline.train(clinic_run, fold="all", config=TrainConfig(steps=20, **{**SHORT, "workers": 1}))


def test_several_folds_train_in_one_command(clinic_run):
    results = train_folds(clinic_run, TrainOptions(folds=(0, 1)), TrainConfig(steps=1, **SHORT))
    assert list(results) == [0, 1]
    assert all((_fold(clinic_run, fold) / "checkpoints" / "last").is_dir() for fold in (0, 1))


@pytest.mark.slow
def test_folds_side_by_side_are_those_one_after_the_other_and_a_killed_one_is_named(clinic_run, tmp_path):
    import multiprocessing
    import shutil
    import threading

    other, third = tmp_path / "other", tmp_path / "third"
    shutil.copytree(clinic_run, other)
    shutil.copytree(clinic_run, third)
    choices = {"steps": 2, "deterministic": True, **SHORT}
    train_folds(clinic_run, TrainOptions(folds=(0, 1, "all")), TrainConfig(**choices))
    results = train_folds(other, TrainOptions(folds=(0, 1, "all"), devices=("cpu", "cpu")), TrainConfig(**choices))
    assert list(results) == [0, 1, "all"]
    assert all(_hashes(other, fold) == _hashes(clinic_run, fold) for fold in results)

    earlier = {child.pid for child in multiprocessing.active_children()}

    def kill_the_first(line):
        if line.startswith("Fold 0 trains"):
            [victim] = [child for child in multiprocessing.active_children() if child.pid not in earlier]
            threading.Timer(1.0, os.kill, (victim.pid, signal.SIGKILL)).start()

    with pytest.raises(PartialError, match=r"1 folds trained, 1 failed: fold 0: its process was killed"):
        train_folds(
            third, TrainOptions(folds=(0, 1), devices=("cpu", "cpu")), TrainConfig(**choices), on_event=kill_the_first
        )
    assert _hashes(third, 1) == _hashes(clinic_run, 1)


def test_processes_of_folds_end_with_the_command_that_started_them(tmp_path):
    (tmp_path / "command.py").write_text(
        "import multiprocessing, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from medmamba.training.folds import _follow_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), _follow_parent)\n"
        "    pool.submit(print, 'works', flush=True).result()\n"
        "    time.sleep(600)\n"
    )
    command = subprocess.Popen([sys.executable, str(tmp_path / "command.py")], stdout=subprocess.PIPE, text=True)
    assert command.stdout.readline() == "works\n"
    command.kill()
    left, _ = command.communicate(timeout=300)  # the end of what its child may print comes with the child's end
    assert left == ""


def test_a_second_training_in_the_same_folder_is_refused(clinic_run):
    _fold(clinic_run).mkdir(parents=True)
    with FolderLock(_fold(clinic_run)), pytest.raises(InputError, match="in use by process"):
        pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT))


@pytest.mark.parametrize("name", ["plain_unet", "residual_unet"])
def test_a_convolution_unet_of_before_is_resumed_as_what_it_was(clinic_run, tmp_path, name) -> None:
    """Their records have no decoder_convs; the network of now has other weights."""
    plan = read_plan(clinic_run / "plan.json")
    now = network_arguments(plan, plan.default, network=name)
    before = {key: value for key, value in now.items() if key != "decoder_convs"}
    before["blocks_per_stage"] = [2] * len(now["strides"])
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "model.json").write_text(
        json.dumps({"network": before, "configuration": "x", "plan_sha256": "", "fold": "0"})
    )
    assert arguments_to_resume(tmp_path, plan, now) == before
    with pytest.raises(ConfigError, match=r"another network \(name"):
        arguments_to_resume(tmp_path, plan, now | {"name": "vm_unet"})
    (tmp_path / "model.json").write_text(
        json.dumps({"network": now, "configuration": "x", "plan_sha256": "", "fold": "0"})
    )
    assert arguments_to_resume(tmp_path, plan, now) == now


def test_a_u_mamba_bot_of_before_is_resumed_with_blocks_never_built(clinic_run, tmp_path) -> None:
    plan = read_plan(clinic_run / "plan.json")
    now = network_arguments(plan, plan.default, network="u_mamba_bot")
    before = {**now, "blocks_per_stage": [2] * (len(now["strides"]) - 1) + [now["blocks_per_stage"][-1]]}
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "model.json").write_text(
        json.dumps({"network": before, "configuration": "x", "plan_sha256": "", "fold": "0"})
    )
    assert arguments_to_resume(tmp_path, plan, now) == before
    (tmp_path / "model.json").write_text(
        json.dumps(
            {"network": {**before, "blocks_per_stage": [9]}, "configuration": "x", "plan_sha256": "", "fold": "0"}
        )
    )
    with pytest.raises(ConfigError, match=r"another network \(blocks_per_stage"):
        arguments_to_resume(tmp_path, plan, now)
