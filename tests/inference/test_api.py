"""The Python API as a pipeline uses it: many calls, several threads, nothing changed outside, errors as results."""

from __future__ import annotations

import gc
import json
import locale
import os
import shutil
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

import medmamba
from medmamba.errors import ConfigError, InputError, ResourceError
from medmamba.geometry import Grid


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return medmamba.Predictor.from_run(tiny_run, device="cpu", mirror=False)


@pytest.fixture(scope="module")
def images(small_dataset) -> list[Path]:
    return sorted((small_dataset / "imagesTs").glob("*.nii.gz")) + sorted((small_dataset / "imagesTr").glob("*.nii.gz"))


def test_runs_and_folds_are_opened_by_name_and_refused_by_name(tiny_run, tmp_path, images):
    fold = tiny_run / "models" / "3d_fullres" / "fold_1"
    moved = shutil.copytree(fold, tmp_path / "elsewhere")
    alone = medmamba.Predictor.from_folder(moved, mirror=False).predict(images[0])
    chosen = medmamba.Predictor.from_run(tiny_run, folds=[1], mirror=False).predict(images[0])
    assert np.array_equal(alone.labels, chosen.labels)
    with pytest.raises(InputError, match="not a run folder"):
        medmamba.Predictor.from_run(moved)
    with pytest.raises(InputError, match="not a trained fold"):
        medmamba.Predictor.from_folder(tiny_run)
    with pytest.raises(InputError, match="not a bundle"):
        medmamba.Predictor.from_bundle(tiny_run)


def test_a_result_carries_its_provenance_and_the_record_names_nobody(predictor, images):
    result = predictor.predict(images[0])
    assert result.provenance == predictor.provenance()
    assert result.provenance["settings"]["precision"] == "fp32"  # it was a dictionary in version 0.1
    assert set(result.provenance.weights_sha256["3d_fullres"]) == {"fold_0", "fold_1"}
    assert predictor.provenance().settings.step == 0.5
    assert predictor.provenance().settings.scan_backend == "none"  # a network without scans
    text = json.dumps(result.record())
    assert images[0].name.split(".")[0] not in text
    assert result.record()["volume_ml"] == result.volumes_ml


def test_a_report_is_written_as_json_and_as_a_page_that_loads_nothing(predictor, images, tmp_path):
    result = predictor.predict(images[0])
    result.save_report(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["model"]["plan_sha256"] == predictor.plan.hash()
    result.save_report(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    with pytest.raises(InputError, match=r"\.json or \.html"):
        result.save_report(tmp_path / "r.pdf")


def test_one_bad_case_is_a_result_and_the_next_ones_follow(predictor, images, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(images[0].read_bytes()[:500])
    first, second, third = predictor.predict_many([images[0], broken, images[1]], on_error="record")
    assert (first.status, second.status) != ("failed", "ok")
    assert isinstance(second, medmamba.FailedPrediction)
    assert second.case == "broken.nii.gz"
    assert "broken.nii.gz" in second.reason
    assert third.labels.shape == third.grid.shape
    with pytest.raises(InputError, match=r"broken\.nii\.gz"):
        list(predictor.predict_many([broken]))


def test_the_estimate_before_is_the_estimate_of_the_case(predictor):
    grid = Grid((40, 50, 60), np.diag([1.0, 1.0, 2.0, 1.0]))
    case = predictor.model.ensembles[0].prepare("solid block", np.ones((1, *grid.shape), np.float32), grid)
    told, found = predictor.estimate(grid.shape, grid.spacing_mm), predictor.model.ensembles[0].estimate(case.trail, 0)
    assert replace(told, budget=0) == replace(found, budget=0)  # what is free changes from moment to moment
    assert predictor.estimate((400, 400, 400)).peak > predictor.estimate((40, 40, 40)).peak


def test_a_case_above_the_limit_is_refused_with_numbers(tiny_run, images):
    small = medmamba.Predictor(tiny_run, folds=[0], mirror=False, memory_limit_gib=1e-6)
    with pytest.raises(ResourceError, match=r"needs about [1-9]\d* MiB of memory.* the limit is 1 MiB"):
        small.predict(images[0])


def test_fast_and_batches_of_patches_are_choices_that_the_provenance_names(tiny_run, images):
    plain = medmamba.Predictor(tiny_run, folds=[0], mirror=False)
    batched = medmamba.Predictor(tiny_run, folds=[0], mirror=False, tile_batch=3)
    fast = medmamba.Predictor(tiny_run, folds=[0], fast=True)
    masks = [predictor.predict(images[0]) for predictor in (plain, batched, fast)]
    assert (masks[0].labels == masks[1].labels).mean() > 0.999  # sums in another order
    assert masks[2].labels.shape == masks[0].labels.shape
    settings = [mask.provenance.settings for mask in masks]
    assert [one.tile_batch for one in settings] == [1, 3, 1]
    assert (settings[2].fast, settings[2].mirror) == (True, False)
    assert settings[2].step > settings[0].step


def test_threads_get_the_bits_of_a_single_caller(predictor, images):
    alone = [predictor.predict(path) for path in images[:2]]
    found: dict[int, np.ndarray] = {}

    def work(number):
        found[number] = predictor.predict(images[number]).labels

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, result in enumerate(alone):
        assert np.array_equal(found[number], result.labels)


def test_a_prediction_changes_nothing_outside_itself(tiny_run, images, tmp_path):
    def state():
        return (
            dict(os.environ),
            Path.cwd(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            locale.setlocale(locale.LC_ALL),
            sorted(tmp_path.iterdir()),
        )

    before = state()
    with medmamba.Predictor(tiny_run, mirror=False, scratch=tmp_path) as one:
        one.predict(images[0])
    assert state() == before


def test_half_precision_moves_probabilities_little_and_is_part_of_the_record(tiny_run, images):
    half = medmamba.Predictor(tiny_run, folds=[0], mirror=False, device="cpu", precision="bf16")
    single = medmamba.Predictor(tiny_run, folds=[0], mirror=False, device="cpu")
    assert half.provenance().settings.precision == "bf16"
    assert single.provenance().settings.precision == "fp32"
    found, expected = (p.predict(images[0], probabilities=True) for p in (half, single))
    difference = np.abs(found.probabilities - expected.probabilities).max()
    assert 0 < difference < 0.05
    with pytest.raises(ConfigError, match=r"--precision 'bf17' is none of: .* Did you mean 'bf16'"):
        medmamba.Predictor(tiny_run, precision="bf17")


def test_a_model_of_an_earlier_version_whose_plans_had_fewer_fields_still_predicts(tiny_run, images, tmp_path):
    fold = shutil.copytree(tiny_run / "models" / "3d_fullres" / "fold_0", tmp_path / "fold_0")
    plan = json.loads((fold / "plan.json").read_text())
    del plan["options"]["train_hours"]
    text = json.dumps(plan, indent=2)
    (fold / "plan.json").write_text(text)
    facts = json.loads((fold / "model.json").read_text())
    (fold / "model.json").write_text(json.dumps(facts | {"plan_sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="not the plan it was trained with"):
        medmamba.Predictor(fold, device="cpu")
    (fold / "model.json").write_text(json.dumps(facts | {"plan_sha256": sha256(text.encode()).hexdigest()}))
    with medmamba.Predictor(fold, device="cpu", mirror=False) as found:
        assert found.predict(images[0]).labels.any()


def test_a_closed_predictor_says_so(tiny_run, images):
    with medmamba.Predictor(tiny_run, mirror=False) as one:
        assert one.predict(images[0]).labels.any() in (True, False)
    with pytest.raises(ConfigError, match="was closed"):
        one.predict(images[0])


@pytest.mark.slow
def test_fifty_predictions_grow_the_memory_by_less_than_five_percent(tiny_run, images):
    one = medmamba.Predictor(tiny_run, folds=[0], mirror=False)
    for number in range(10):
        one.predict(images[number % len(images)])
    gc.collect()
    before = _resident()
    for number in range(50):
        one.predict(images[number % len(images)])
    gc.collect()
    grown = _resident() / before - 1
    print(f"resident memory: {before / 2**20:.0f} MiB, after 50 predictions {grown:+.2%}")
    assert grown < 0.05


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
