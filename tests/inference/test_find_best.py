"""Cross-validation chooses, and predict does what was chosen."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import make_fold

from medmamba.errors import InputError
from medmamba.inference.predictor import Predictor
from medmamba.model_selection.candidate import EnsembleCandidate, ValidatedCase, choose_cleaning, choose_thresholds
from medmamba.model_selection.run import find_best, quality_limits, softmax_temperature
from medmamba.models.cleaning import CleaningStep, clean
from medmamba.models.output_channels import OutputChannels
from medmamba.models.prediction_setup import Limits, read_prediction_setup
from medmamba.plans.schema import Plan

ORGAN = OutputChannels.of_labels(["background", "organ"])
NESTED = OutputChannels.of_plan(
    SimpleNamespace(
        labels={"background": 0, "rim": 1, "core": 2},
        regions={"whole": ["rim", "core"], "core": ["core"]},
        region_order=["rim", "core"],
        ignore_label=None,
        left_right_pairs=[],
        conventions="medmamba",
    )
)


def candidate(labels, truth, heads=ORGAN):
    case = ValidatedCase(truth, (True,) * len(heads.names), 1.0, labels=labels)
    return EnsembleCandidate(heads, {"a": case})


def ball_and_speck():
    truth = np.zeros((20, 20, 20), np.int16)
    truth[4:12, 4:12, 4:12] = 1
    found = truth.copy()
    found[17, 17, 17] = 1
    return found, truth


def test_a_speck_is_cleaned_away_and_only_where_it_helps():
    found, truth = ball_and_speck()
    (step,) = choose_cleaning(candidate(found, truth), ["organ"])
    assert step.label == "organ"
    assert step.gain > 0
    assert np.array_equal(clean(found, [step], ["organ"], 1.0), truth)
    two_organs = truth.copy()
    two_organs[16:19, 16:19, 16:19] = 1
    assert choose_cleaning(candidate(two_organs, two_organs), ["organ"]) == []


def test_a_step_that_helps_one_region_and_harms_another_is_left_out():
    """Without the second core the region core gains, but background in its place is a hole in the whole."""
    truth = np.zeros((20, 20, 20), np.int16)
    truth[4:16, 4:16, 4:16] = 1
    truth[5:8, 5:8, 5:8] = 2
    found = truth.copy()
    found[12:14, 12:14, 12:14] = 2
    assert choose_cleaning(candidate(found, truth, NESTED), ["rim", "core"]) == []


def test_small_objects_are_measured_in_cubic_millimetres():
    found, truth = ball_and_speck()
    step = CleaningStep(label="organ", action="remove_small", smallest_voxels_mm3=5.0)
    assert np.array_equal(clean(found, [step], ["organ"], 1.0), truth)
    assert np.array_equal(clean(found, [step], ["organ"], 6.0), found)


def test_a_case_that_was_not_looked_at_for_a_structure_and_ignored_voxels_do_not_count():
    found, truth = ball_and_speck()
    unseen = ValidatedCase(0 * truth, (True, False), 1.0, labels=found)
    both = EnsembleCandidate(ORGAN, {"a": candidate(found, truth).cases["a"], "b": unseen})
    assert both.dice([1]) == candidate(found, truth).dice([1])
    ignoring = OutputChannels.of_plan(
        SimpleNamespace(
            labels={"background": 0, "organ": 1},
            regions=None,
            region_order=None,
            ignore_label=9,
            left_right_pairs=[],
            conventions="medmamba",
        )
    )
    truth[17, 17, 17] = 2  # the index of the ignored voxels
    assert candidate(found, truth, ignoring).dice([1]) == {1: 1.0}


def shy(tmp_path, *, harmful=False):
    """Regions that a network finds with probability 0.35; ``harmful``: a lower threshold of core breaks the whole."""
    truth = np.zeros((12, 12, 12), np.int16)
    truth[2:9, 2:9, 2:9] = 1
    truth[4:7, 4:7, 4:7] = 2
    probabilities = torch.full((2, *truth.shape), 0.01)
    probabilities[0][torch.from_numpy(truth > 0)] = 0.9
    probabilities[1][torch.from_numpy(truth == 2)] = 0.35
    if harmful:
        probabilities[1, 10, 10, :5] = 0.35  # outside the whole, which core is a part of
    found = EnsembleCandidate(NESTED)
    found.add("a", probabilities, ValidatedCase(truth, (True, True), 1.0), tmp_path / "a.npy")
    return found, truth


def test_a_region_gets_the_threshold_that_finds_it(tmp_path):
    found, truth = shy(tmp_path)
    assert found.dice([0, 1]) == {0: 1.0, 1: 0.0}
    assert choose_thresholds(found) == {"core": 0.1}
    assert np.array_equal(found.cases["a"].labels, truth)


def test_a_threshold_that_harms_another_region_is_left_out(tmp_path):
    found, _ = shy(tmp_path, harmful=True)
    assert choose_thresholds(found) == {}


def test_overconfident_logits_get_a_temperature_above_one():
    torch.manual_seed(0)
    logits = torch.randn(5000, 3)
    targets = torch.distributions.Categorical(logits=logits).sample()
    assert softmax_temperature([logits], [targets]) == pytest.approx(1, abs=0.15)
    assert softmax_temperature([3 * logits], [targets]) == pytest.approx(3, abs=0.5)
    assert softmax_temperature([], []) == 1.0


def test_a_temperature_that_costs_one_class_is_not_taken():
    logits = torch.tensor([[4.0, 0.0]] * 90 + [[0.0, 1.0]] * 10)
    wrong = torch.tensor([1] * 40 + [0] * 50 + [1] * 10)
    loud = torch.tensor([0] * 90 + [1] * 10)
    assert softmax_temperature([logits], [loud]) < 1  # always right: sharper is better for both
    assert softmax_temperature([logits], [wrong]) == 1.0  # flatter would cost class 0


def test_limits_of_uncertainty_come_from_usual_cases_and_pass_nearly_all_of_them():
    random = np.random.default_rng(0)
    entropies, dices = random.uniform(0.05, 0.2, 40).tolist(), random.uniform(0.85, 0.95, 40).tolist()
    limits = quality_limits([*entropies, 0.9, None, 0.1], [*dices, 0.1, 0.9, math.nan])
    assert limits is not None
    assert limits.cases == 40
    assert 0.15 < limits.max_entropy < 0.21
    assert 0.85 <= limits.min_agreement < 0.87
    assert sum(entropy > limits.max_entropy for entropy in entropies) <= 2
    assert quality_limits(entropies[:9], dices[:9]) is None


def runs_with(plan, tiny_run, small_run, run):
    shutil.copytree(tiny_run, run)
    shutil.copytree(small_run / "preprocessed", run / "preprocessed")
    if plan is not None:
        (run / "plan.json").write_text(plan.to_json())
        shutil.rmtree(run / "models")
        for seed in (0, 1):
            make_fold(run / "models" / "3d_fullres" / f"fold_{seed}", plan, seed)
    return run


def test_the_recipe_is_stored_says_its_folds_and_is_applied_by_predict(tiny_run, small_run, small_dataset, tmp_path):
    run = runs_with(None, tiny_run, small_run, tmp_path / "run")
    recipe = find_best(run, mirror=False)
    assert recipe == read_prediction_setup(run)
    assert recipe.folds == {"3d_fullres": ["fold_0", "fold_1"]}
    assert recipe.limits is None  # two cases are not enough
    image = sorted((small_dataset / "imagesTs").iterdir())[0]
    predictor = Predictor(run, mirror=False)
    assert predictor.model.recipe == recipe
    assert not recipe.mirror
    assert not Predictor(run).provenance().settings.mirror  # as it was measured
    differs = "find-best ran without mirroring, this prediction runs with it"
    assert differs not in predictor.model.warnings
    assert differs in Predictor(run, mirror=True).model.warnings
    before = recipe.model_copy(update={"mirror": None})  # of a version that did not record it
    assert "mirror" not in before.to_json()
    (run / "best.json").write_text(before.to_json())
    assert Predictor(run).provenance().settings.mirror
    (run / "best.json").write_text(recipe.to_json())
    assert predictor.provenance().recipe_sha256 == recipe.hash()
    strict = recipe.model_copy(update={"limits": Limits(max_entropy=1e-6, min_agreement=1.0, cases=12)})
    (run / "best.json").write_text(strict.to_json())
    findings = " ".join(finding.text for finding in Predictor(run, mirror=False).predict(image).findings)
    assert "uncertain" in findings
    assert "(limit 1.00, from 12 validation cases)" in findings


def test_regions_are_compared_and_their_thresholds_applied_by_predict(tiny_run, small_run, small_dataset, tmp_path):
    document = json.loads((small_run / "plan.json").read_text())
    first, second = [name for name, value in document["labels"].items() if value]
    document |= {"regions": {"whole": [first, second], second: [second]}, "region_order": [first, second]}
    run = runs_with(Plan.from_json(json.dumps(document)), tiny_run, small_run, tmp_path / "run")
    recipe = find_best(run, mirror=False)
    assert set(recipe.dice) == {"3d_fullres"}
    assert recipe.temperature == 1.0
    image = sorted((small_dataset / "imagesTs").iterdir())[0]
    masks = {}
    for limit in (1e-6, 0.5, 1 - 1e-6):
        changed = recipe.model_copy(update={"thresholds": {second: limit}, "cleaning": []})
        (run / "best.json").write_text(changed.to_json())
        masks[limit] = Predictor(run, mirror=False).predict(image)
    assert masks[1e-6].voxels[second] > masks[0.5].voxels[second] > masks[1 - 1e-6].voxels[second] == 0
    (run / "best.json").write_text(changed.model_copy(update={"thresholds": {second: 0.3}}).to_json())
    found = Predictor(run, mirror=False).predict(image, probabilities=True)
    assert found.probabilities is not None
    assert found.voxels[second] == int((found.probabilities[1] > 0.3).sum())


def test_two_configurations_are_compared_with_their_ensemble_and_predict_averages_them(
    tiny_run, small_run, small_dataset, tmp_path
):
    document = json.loads((small_run / "plan.json").read_text())
    other = document["configurations"]["3d_fullres"] | {"name": "3d_other", "decisions": []}
    document["configurations"]["3d_other"] = other
    plan = Plan.from_json(json.dumps(document))
    run = runs_with(plan, tiny_run, small_run, tmp_path / "run")
    shutil.copytree(run / "preprocessed" / "3d_fullres", run / "preprocessed" / "3d_other")
    make_fold(run / "models" / "3d_other" / "fold_0", plan, 5, "3d_other")
    recipe = find_best(run, mirror=False)
    assert set(recipe.dice) == {"3d_fullres", "3d_other", "3d_fullres+3d_other"}
    assert all(folds == ["fold_0"] for folds in recipe.folds.values())  # the one that both have
    (run / "best.json").unlink()
    image = sorted((small_dataset / "imagesTs").iterdir())[0]
    probabilities = [
        Predictor(run, configuration=names, folds=[0], mirror=False).predict(image, probabilities=True).probabilities
        for names in ("3d_fullres", "3d_other", ["3d_fullres", "3d_other"])
    ]
    assert np.allclose(probabilities[2], (probabilities[0] + probabilities[1]) / 2, atol=1e-6)


def test_the_command_says_what_was_chosen(tiny_run, small_run, tmp_path, capsys):
    from medmamba.cli.main import run as medmamba

    run = runs_with(None, tiny_run, small_run, tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        medmamba(["find-best", str(run), "--no-mirror", "--scratch", str(tmp_path)])
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert "3d_fullres: Dice" in said.err + said.out
    assert "the fixed ones stay" in said.err + said.out
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing left in the scratch folder


def test_a_run_without_trained_folds_says_what_to_do(small_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("plan.json", "splits.json"):
        shutil.copyfile(small_run / name, run / name)
    with pytest.raises(InputError, match="medmamba train"):
        find_best(run)
