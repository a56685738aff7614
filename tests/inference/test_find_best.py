"""Cross-validation chooses, and predict does what was chosen."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from medmamba.errors import InputError
from medmamba.inference.cleaning import clean
from medmamba.inference.find_best import _Candidate, _cleaning, _temperature, _Validated, find_best
from medmamba.inference.postprocess import Cleaning, read_recipe
from medmamba.inference.predictor import Predictor


def candidate(labels, truth):
    return _Candidate({"a": _Validated(labels, truth, 1.0)})


def ball_and_speck():
    truth = np.zeros((20, 20, 20), np.int16)
    truth[4:12, 4:12, 4:12] = 1
    found = truth.copy()
    found[17, 17, 17] = 1
    return found, truth


def test_a_speck_is_cleaned_away_and_only_where_it_helps():
    found, truth = ball_and_speck()
    (step,) = _cleaning(candidate(found, truth), ["organ"])
    assert step.label == "organ"
    assert step.gain > 0
    assert np.array_equal(clean(found, [step], {"organ": 1}, 1.0), truth)
    two_organs = truth.copy()
    two_organs[16:19, 16:19, 16:19] = 1
    assert list(_cleaning(candidate(two_organs, two_organs), ["organ"])) == []


def test_small_objects_are_measured_in_cubic_millimetres():
    found, truth = ball_and_speck()
    step = Cleaning(label="organ", action="remove_small", smallest_voxels_mm3=5.0)
    assert np.array_equal(clean(found, [step], {"organ": 1}, 1.0), truth)
    assert np.array_equal(clean(found, [step], {"organ": 1}, 6.0), found)


def test_overconfident_logits_get_a_temperature_above_one():
    import torch

    torch.manual_seed(0)
    logits = torch.randn(5000, 3)
    targets = torch.distributions.Categorical(logits=logits).sample()
    honest, loud = _Candidate(logits=[logits], targets=[targets]), _Candidate(logits=[2 * logits], targets=[targets])
    assert _temperature(honest) == pytest.approx(1, abs=0.15)
    assert _temperature(loud) == pytest.approx(2, abs=0.3)


def test_the_recipe_is_stored_says_its_folds_and_is_applied_by_predict(tiny_run, small_run, small_dataset, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.copytree(small_run / "preprocessed", run / "preprocessed")
    recipe = find_best(run, mirror=False)
    assert recipe == read_recipe(run)
    assert recipe.folds == {"3d_fullres": ["fold_0", "fold_1"]}
    predictor = Predictor(run, mirror=False)
    assert predictor.recipe == recipe
    assert predictor.provenance()["recipe_sha256"] == recipe.hash()
    assert predictor.predict(sorted((small_dataset / "imagesTs").iterdir())[0]).labels.any() in (True, False)


def test_a_run_without_trained_folds_says_what_to_do(small_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("plan.json", "splits.json"):
        shutil.copyfile(small_run / name, run / name)
    with pytest.raises(InputError, match="medmamba train"):
        find_best(run)
