"""The whole line on real volumes: plan, train, resume, predict, evaluate."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

import medmamba
from medmamba import pipeline
from medmamba.errors import ConfigError
from medmamba.models.checkpoint import read_state
from medmamba.training import epochs, trainer
from medmamba.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
SHORT = {"steps_per_epoch": 2, "workers": 0, "warmup_steps": 0}


@pytest.fixture(scope="module")
def trained_run(small_run):
    pipeline.train(small_run, fold="all", config=TrainConfig(steps=3, **SHORT))
    return small_run


def _copied(run, tmp_path):
    target = tmp_path / "run"
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("models", ".lock"))
    return target


def _weights(run, fold):
    return read_state(run / "models" / "3d_fullres" / f"fold_{fold}" / "checkpoints" / "last")["sha256"]


def test_planning_twice_gives_the_same_bytes(small_dataset, small_run, tmp_path):
    medmamba.plan(small_dataset, tmp_path / "again", patch_size=(16, 24, 16), batch_size=2)
    for name in ("plan.json", "fingerprint.json", "splits.json"):
        assert (tmp_path / "again" / name).read_bytes() == (small_run / name).read_bytes()


@pytest.mark.slow  # as test_resume.py's run in two parts, on real volumes
def test_training_four_steps_equals_two_steps_and_a_resume_to_the_bit(small_run, tmp_path):
    whole, halves = _copied(small_run, tmp_path / "a"), _copied(small_run, tmp_path / "b")
    losses: dict[str, list[str]] = {"whole": [], "halves": []}
    config = TrainConfig(steps=4, **SHORT)
    pipeline.train(whole, fold=0, config=config, on_step=lambda r: losses["whole"].append(r.loss.hex()))

    class Stop(Exception):
        pass

    def stop_at_two(report):
        losses["halves"].append(report.loss.hex())
        if report.step == 2:
            raise Stop

    with pytest.raises(Stop):
        pipeline.train(halves, fold=0, config=config, on_step=stop_at_two)
    pipeline.train(
        halves,
        fold=0,
        config=config.model_copy(update={"workers": 2}),
        resume=True,
        on_step=lambda r: losses["halves"].append(r.loss.hex()),
    )
    assert losses["whole"] == losses["halves"]
    assert _weights(whole, 0) == _weights(halves, 0)


def test_a_trained_fold_is_never_overwritten_in_silence(trained_run):
    with pytest.raises(ConfigError, match="--resume to continue, or --restart"):
        pipeline.train(trained_run, fold="all", config=TrainConfig(steps=1, **SHORT))


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(small_run, tmp_path):
    run = _copied(small_run, tmp_path)
    pipeline.train(run, fold="all", config=TrainConfig(steps=1, **SHORT))
    pipeline.train(run, fold="all", config=TrainConfig(steps=2, **SHORT), resume=True)
    last = run / "models" / "3d_fullres" / "fold_all" / "checkpoints" / "last" / "model.safetensors"
    last.write_bytes(last.read_bytes()[:-7])
    with pytest.warns(UserWarning, match=r"SHA-256.*Continuing from the generation before"):
        result = pipeline.train(run, fold="all", config=TrainConfig(steps=2, **SHORT), resume=True)
    assert result.steps == 2


def test_the_loss_falls(small_run, tmp_path):
    run = _copied(small_run, tmp_path)
    losses: list[float] = []
    config = TrainConfig(steps=60, learning_rate=3e-3, augment="none", **{**SHORT, "steps_per_epoch": 60})
    pipeline.train(run, fold="all", config=config, on_step=lambda r: losses.append(r.loss))
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


def test_the_schedule_ends_inside_the_minutes(small_run, tmp_path, monkeypatch):
    now, rates = [0.0], []
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(epochs, "time", trainer.time)

    def one_step(report):
        rates.append(report.learning_rate)
        now[0] += 0.5

    config = TrainConfig(max_minutes=0.1, **SHORT)
    result = pipeline.train(_copied(small_run, tmp_path), fold="all", config=config, on_step=one_step)
    assert 5 < result.seconds <= 6
    assert len(rates) == result.steps > 9
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert rates[-1] < 0.2 * rates[0]


def test_masks_lie_on_the_images_own_grid_bit_for_bit(trained_run, small_dataset, tmp_path):
    report = pipeline.predict(trained_run, small_dataset / "imagesTs", tmp_path / "masks", mirror=False)
    assert not report.failed
    for path in sorted((small_dataset / "imagesTs").iterdir()):
        image, mask = nib.load(path), nib.load(tmp_path / "masks" / path.name)
        assert mask.shape == image.shape
        assert mask.affine.tobytes() == image.affine.tobytes()
        for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "pixdim", "xyzt_units"):
            assert mask.header[field].tobytes() == image.header[field].tobytes()
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}
    written = json.loads((tmp_path / "masks" / "report.json").read_text())
    assert set(written["cases"]) == {path.name[:-7] for path in (small_dataset / "imagesTs").iterdir()}
    assert len(written["model"]["weights_sha256"]["3d_fullres"]["fold_all"]) == 64


def test_the_same_body_stored_in_another_orientation_gets_the_same_mask(trained_run, small_dataset, tmp_path):
    path = sorted((small_dataset / "imagesTs").iterdir())[0]
    image = nib.load(path)
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, tmp_path / "turned.nii.gz")
    predictor = medmamba.Predictor(trained_run, mirror=False)
    straight, other = predictor.predict(path), predictor.predict(tmp_path / "turned.nii.gz")
    back = nib.Nifti1Image(other.labels.astype(np.uint8), turned.affine)
    orientation = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(back.affine), nib.orientations.io_orientation(image.affine)
    )
    assert np.array_equal(np.asarray(back.as_reoriented(orientation).dataobj), straight.labels)


def test_paths_arrays_and_read_images_give_the_same_mask(trained_run, small_dataset):
    from medmamba.images import read_image

    path = sorted((small_dataset / "imagesTs").iterdir())[0]
    predictor = medmamba.Predictor(trained_run, mirror=False)
    image = read_image(path)
    first = predictor.predict(path).labels
    assert np.array_equal(first, predictor.predict(image).labels)
    assert np.array_equal(first, predictor.predict((np.array(image.array[0]), image.grid.affine)).labels)


def test_a_poisoned_case_is_named_and_the_others_are_finished(trained_run, small_dataset, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(small_dataset / "imagesTs", images)
    whole = sorted(images.iterdir())[0]
    shutil.copyfile(whole, images / "b_broken.nii.gz")
    pipeline.predict(trained_run, images / "b_broken.nii.gz", tmp_path / "masks", mirror=False)
    assert (tmp_path / "masks" / "b_broken.nii.gz").exists()  # of an earlier run
    (images / "b_broken.nii.gz").write_bytes(whole.read_bytes()[:2000])
    report = pipeline.predict(trained_run, images, tmp_path / "masks", mirror=False)
    assert set(report.failed) == {"b_broken"}
    assert len(report.done) == 2
    assert not (tmp_path / "masks" / "b_broken.nii.gz").exists()


def test_evaluation_counts_every_case_and_label(small_dataset, tmp_path):
    truths = small_dataset / "labelsTs"
    shutil.copytree(truths, tmp_path / "masks")
    result = medmamba.evaluate(tmp_path / "masks", truths)
    assert result.mean_foreground == 1
    rows = list(csv.reader((tmp_path / "masks" / "evaluation.csv").open()))
    assert rows[0][:3] == ["case", "structure", "dice"]
    assert len(rows) == 1 + 2 * 2
    assert json.loads((tmp_path / "masks" / "evaluation.json").read_text())["mean_foreground"] == 1


def test_a_case_without_a_prediction_fails_the_evaluation(small_dataset, tmp_path):
    truths = small_dataset / "labelsTs"
    shutil.copytree(truths, tmp_path / "masks")
    first = sorted((tmp_path / "masks").iterdir())[0]
    first.unlink()
    with pytest.raises(medmamba.errors.InputErrors, match="no prediction for"):
        medmamba.evaluate(tmp_path / "masks", truths)


@pytest.mark.parametrize("network", ["residual_unet", pytest.param("plain_unet", marks=pytest.mark.slow)])
def test_nnunets_networks_train_from_the_same_plan(small_run, tmp_path, network):
    run = _copied(small_run, tmp_path)
    result = pipeline.train(run, fold="all", network=network, config=TrainConfig(steps=1, **SHORT))
    assert math.isfinite(result.final_loss)


def test_the_twin_without_a_scan_trains_from_the_same_plan(small_run, tmp_path):
    run = _copied(small_run, tmp_path)
    result = pipeline.train(run, fold="all", use_scan=False, config=TrainConfig(steps=1, **SHORT))
    assert math.isfinite(result.final_loss)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)  # Ctrl-C: training/test_interrupts.py, its code faults/test_terminal.py
def test_a_stopped_training_leaves_a_whole_checkpoint_and_its_exit_code(small_run, tmp_path, number, code):
    run = _copied(small_run, tmp_path)
    command = [sys.executable, "-c", "from medmamba.cli.main import run; run()", "train", run, "--fold", "all"]
    child = subprocess.Popen(
        [*command, "--workers", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    while not child.stdout.readline().startswith("train "):  # device and scan backend, then the first line of progress
        assert child.poll() is None
    child.send_signal(number)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == code, errors
    assert "Traceback" not in errors
    assert "--resume" in errors
    assert read_state(run / "models" / "3d_fullres" / "fold_all" / "checkpoints" / "last")["progress"]["step"] > 0
