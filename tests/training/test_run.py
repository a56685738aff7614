"""Training as a whole: clinic labels, faults, budgets, folds, what is left on disk."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from fold_files import SHORT, fold_of, hashes_of
from PIL import Image

import medmamba
from medmamba import pipeline
from medmamba.disk.lock import FolderLock
from medmamba.errors import InputError, MedmambaError, PartialError
from medmamba.models.run_folder import read_plan
from medmamba.preprocessing.store import CaseReader, write_case
from medmamba.training import epochs, trainer
from medmamba.training.config import TrainConfig
from medmamba.training.folds import train_folds
from medmamba.training.options import TrainOptions


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


def test_everything_a_person_wants_to_see_is_on_disk(clinic_run, curves_drawn):
    events = []
    config = TrainConfig(steps=4, ema=0.9, schedule="cosine", **SHORT)
    result = pipeline.train(clinic_run, fold=0, config=config, on_event=events.append)
    fold = fold_of(clinic_run)
    rows = list(csv.DictReader((fold / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert 0 <= float(rows[0]["waiting_for_data"]) <= 1
    assert {"left kidney", "right kidney", "train_dice", "skipped_steps"} <= set(rows[0])
    assert json.loads((fold / "metrics.json").read_text())[1]["step"] == 4
    page = (clinic_run / "report" / "training.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + page.count("<figure>") > 1  # curves and examples
    assert "http" not in page.replace("http-equiv", "")
    for name in ("curves.png", "examples.png"):
        assert min(Image.open(fold / name).size) > 100
    assert result.peak_memory_gib > 0
    assert float(rows[-1]["learning_rate"]) < float(rows[0]["learning_rate"])
    assert (fold / "checkpoints" / "last" / "training.safetensors").is_file()


def test_an_epoch_that_the_budget_cuts_short_has_its_row_until_a_longer_run_fills_it(clinic_run, tmp_path):
    def rows(run):
        keys = ("epoch", "step", "loss", "validation_dice", "left kidney")
        return [tuple(row.get(key) for key in keys) for row in json.loads((fold_of(run) / "metrics.json").read_text())]

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
    assert (fold_of(clinic_run) / "bad_batch.safetensors").is_file()


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


def test_several_folds_train_in_one_command(clinic_run):
    results = train_folds(clinic_run, TrainOptions(folds=(0, 1)), TrainConfig(steps=1, **SHORT))
    assert list(results) == [0, 1]
    assert all((fold_of(clinic_run, fold) / "checkpoints" / "last").is_dir() for fold in (0, 1))


@pytest.mark.slow
def test_folds_side_by_side_are_those_one_after_the_other_and_a_killed_one_is_named(clinic_run, tmp_path):
    import multiprocessing
    import threading

    other, third = tmp_path / "other", tmp_path / "third"
    shutil.copytree(clinic_run, other)
    shutil.copytree(clinic_run, third)
    choices = {"steps": 2, "deterministic": True, **SHORT}
    train_folds(clinic_run, TrainOptions(folds=(0, 1, "all")), TrainConfig(**choices))
    results = train_folds(other, TrainOptions(folds=(0, 1, "all"), devices=("cpu", "cpu")), TrainConfig(**choices))
    assert list(results) == [0, 1, "all"]
    assert all(hashes_of(other, fold) == hashes_of(clinic_run, fold) for fold in results)

    earlier = {child.pid for child in multiprocessing.active_children()}

    def kill_the_first(line):
        if line.startswith("Fold 0 trains"):
            [victim] = [child for child in multiprocessing.active_children() if child.pid not in earlier]
            threading.Timer(1.0, os.kill, (victim.pid, signal.SIGKILL)).start()

    with pytest.raises(PartialError, match=r"1 folds trained, 1 failed: fold 0: its process was killed"):
        train_folds(
            third, TrainOptions(folds=(0, 1), devices=("cpu", "cpu")), TrainConfig(**choices), on_event=kill_the_first
        )
    assert hashes_of(third, 1) == hashes_of(clinic_run, 1)


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
    left, _ = command.communicate(timeout=600)  # the end of what its child may print comes with the child's end
    assert left == ""


def test_a_second_training_in_the_same_folder_is_refused(clinic_run):
    fold_of(clinic_run).mkdir(parents=True)
    with FolderLock(fold_of(clinic_run)), pytest.raises(InputError, match="in use by process"):
        pipeline.train(clinic_run, config=TrainConfig(steps=1, **SHORT))
