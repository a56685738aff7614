"""Expected quality: honest ranges, features that can only speak against a mask, rules of one model alone."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import make_fold

from medmamba.bundle.options import BundleCard
from medmamba.bundle.write import _stages, _write
from medmamba.errors import ConfigError
from medmamba.geometry.display import Display
from medmamba.images import read_label_map
from medmamba.inference.evidence import NetworkEvidence, measured_image, measured_shape
from medmamba.inference.expected import (
    bounds_of,
    chance_above,
    dice_of_scale,
    expectations_of,
    expected_quality,
    features_of,
    scale_of_dice,
    value_of,
)
from medmamba.inference.finding import status_of
from medmamba.inference.folder.page import worst_first
from medmamba.inference.folder.run import predict
from medmamba.inference.predictor import Predictor
from medmamba.inference.sliding_window import gaussian_weight
from medmamba.inference.uncertainty import VoxelUncertainty
from medmamba.model_selection.corruption import HARMS, harmed
from medmamba.model_selection.expected_quality import ExpectationLearner, JudgedCase
from medmamba.model_selection.rule import fit_rule
from medmamba.model_selection.run import find_best
from medmamba.models.expectations import (
    FEATURES,
    Expectations,
    QualityRule,
    StructureExpectations,
    read_expectations,
)
from medmamba.models.output_channels import OutputChannels
from medmamba.models.prediction_setup import read_prediction_setup

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ORGAN = OutputChannels.of_labels(["background", "organ"])
PARTS = OutputChannels.of_labels(["background", "front", "back"])


def rows(random, patients, per_patient=3, features=3):
    """Features and values of patients that differ from each other more than their own rows do."""
    table, values, names = [], [], []
    for patient in range(patients):
        own = random.normal(0, 0.5)
        for _ in range(per_patient):
            row = random.normal(0, 1, features)
            table.append(row)
            values.append(row[0] - 0.5 * row[1] + own + random.normal(0, 0.3 + 0.2 * max(row[0], 0)))
            names.append(f"patient {patient}")
    return np.array(table), np.array(values), names


# Ranges


@given(dice=st.floats(0, 1))
def test_the_scale_of_dice_is_undone(dice):
    assert dice_of_scale(scale_of_dice(dice)) == pytest.approx(dice, abs=1e-9)
    assert (dice_of_scale(math.inf), dice_of_scale(-math.inf)) == (0.0, 1.0)


@pytest.mark.parametrize(("patients", "most"), [(25, 0.99), (60, 0.95)])
def test_ranges_hold_the_truth_of_new_patients_as_often_as_they_say(patients, most):
    random = np.random.default_rng(patients)
    held = []
    for _ in range(60):
        table, values, names = rows(random, patients)
        rule = fit_rule(["a", "b", "c"], table, values, names)
        new, truth, _ = rows(random, 20, per_patient=1)
        for row, value in zip(new, truth, strict=True):
            low, high = bounds_of(rule, value_of(rule, dict(zip("abc", row, strict=True))), 0.05)
            held.append(low <= value <= high)
    assert 0.89 <= np.mean(held) <= most


def test_too_few_patients_give_no_bound_rather_than_a_guess():
    random = np.random.default_rng(0)
    table, values, names = rows(random, 12)
    rule = fit_rule(["a", "b", "c"], table, values, names)
    assert bounds_of(rule, 0.0, 0.05) == (-math.inf, math.inf)
    low, high = bounds_of(rule, 0.0, 0.2)
    assert -math.inf < low < high < math.inf
    enough = fit_rule(["a", "b", "c"], *rows(random, 19))
    assert all(map(math.isfinite, bounds_of(enough, 0.0, 0.05)))


@given(scores=st.lists(st.floats(-3, 3), min_size=1, max_size=30), chance=st.floats(0.02, 0.5), value=st.floats(-2, 2))
def test_bounds_are_the_order_statistics_of_conformal_prediction(scores, chance, value):
    """With one row a patient: the ceil((n + 1) (1 - chance))-th smallest error, infinite where there are too few."""
    ordered, count = sorted(scores), len(scores)
    rule = rule_of(weights={}, scores=ordered, masses=[1 / (count + 1)] * count)
    low, high = bounds_of(rule, value, chance)
    rank = math.ceil((count + 1) * (1 - chance) - 1e-9)
    assert high == (pytest.approx(value + ordered[rank - 1]) if rank <= count else math.inf)
    assert low == (pytest.approx(value + ordered[count - rank]) if rank <= count else -math.inf)


def rule_of(intercept=0.0, weights=None, scores=(-1.0, 0.0, 1.0), masses=None):
    masses = [1 / (len(scores) + 1)] * len(scores) if masses is None else masses
    return QualityRule(
        intercept=intercept, weights=weights or {}, spread=(1.0, 0.0, 0.0), scores=list(scores), masses=list(masses)
    )


def test_the_chance_of_a_dice_below_the_accepted_one_counts_errors_and_one_more_patient():
    rule = rule_of(scores=[-1.0, 0.0, 1.0])
    assert chance_above(rule, 0.0, 0.5) == pytest.approx((0.5, 0.75))
    assert chance_above(rule, 0.0, -2.0) == pytest.approx((1.0, 0.25))
    assert chance_above(rule, 0.0, 2.0) == pytest.approx((0.25, 1.0))


def test_weights_are_those_of_nonnegative_least_squares_and_patients_count_once():
    random = np.random.default_rng(1)
    table = random.normal(0, 1, (400, 3))
    values = 2 + 0.7 * table[:, 0] - 0.4 * table[:, 1] + random.normal(0, 0.1, 400)
    names = [f"patient {number // 4}" for number in range(400)]
    rule = fit_rule(["good", "wrong way", "none"], table, values, names)
    assert rule.weights["good"] == pytest.approx(0.7, abs=0.05)
    assert "wrong way" not in rule.weights
    assert rule.intercept == pytest.approx(2, abs=0.1)
    assert sum(rule.masses) == pytest.approx(100 / 101, abs=1e-6)
    assert rule.scores == sorted(rule.scores)


# Features


def usual_structure(**changes):
    weights = dict.fromkeys(FEATURES, 0.5)
    known = {
        "patients": 30,
        "always_present": True,
        "shape": {"volume": (8.0, 0.2), "extent": (3.0, 0.1), "pieces": (0.0, 0.02)},
        "features": dict.fromkeys(FEATURES, 0.0) | {"soft": -2.0, "views": -3.0, "entropy": -1.0},
        "dice": rule_of(1.5, weights, scores=np.linspace(-0.5, 0.5, 99).tolist()),
    }
    return StructureExpectations(**known | changes)


IMAGE = {"intensities.0.50": (0.0, 0.1), "texture.0.1": (0.0, 0.1), "field.0": (3.0, 0.1)}
NETWORKS = {"soft": 0.1, "views": 0.05, "entropy": 0.3}
SHAPE = {"volume": 8.0, "extent": 3.0, "pieces": 0.0}


@given(
    soft=st.floats(0, 1), views=st.floats(0, 1), entropy=st.floats(0, 5), away=st.floats(0, 20),
    pieces=st.floats(0, 1), more=st.floats(0, 1),
)  # fmt: skip
def test_what_speaks_against_a_mask_never_raises_its_expected_dice(soft, views, entropy, away, pieces, more):
    known = usual_structure()

    def dice(extra):
        networks = {"soft": min(soft + extra, 1), "views": min(views + extra, 1), "entropy": entropy + extra}
        shape = {"volume": 8 + away + extra, "extent": 3 + away + extra, "pieces": min(pieces + extra, 1)}
        image = {"intensities.0.50": away + extra, "texture.0.1": -away - extra, "field.0": 3 + away + extra}
        return expected_quality(known, features_of(networks, shape, image, known.shape, IMAGE))[0].dice

    assert dice(more) <= dice(0.0)


def networks_say(heads, logits, views):
    evidence = NetworkEvidence(heads)
    evidence.see(0, logits, views, gaussian_weight(tuple(logits.shape[2:])))
    return evidence


def test_evidence_is_that_of_its_definitions():
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 3, 6, 5, 4)
    view = torch.randint(0, 3, (2, 6, 5, 4))
    weight = gaussian_weight((6, 5, 4)).double().expand(2, 6, 5, 4)
    found = networks_say(PARTS, logits, [logits.argmax(1), view])
    for channel in (1, 2):
        p = torch.softmax(logits.double(), 1)[:, channel]
        w = weight * (p > 0.05)
        m, v = (logits.argmax(1) == channel).double(), (view == channel).double()
        bits = -(p * p.log2() + (1 - p) * (1 - p).log2())
        measured = found.measured(channel)
        assert measured["soft"] == pytest.approx(float(1 - 2 * (w * p * m).sum() / ((w * p).sum() + (w * m).sum())))
        assert measured["entropy"] == pytest.approx(float((w * bits).sum() / (w * m).sum()), rel=1e-5)
        dice = 2 * (w * m * v).sum() / ((w * m).sum() + (w * v).sum())
        assert measured["views"] == pytest.approx(float(1 - (1 + dice) / 2))


def test_a_network_that_finds_nothing_says_nothing_and_several_are_averaged():
    sure = torch.zeros(1, 2, 4, 4, 4)
    sure[:, 0] = 20.0
    assert networks_say(ORGAN, sure, []).measured(1) == {}
    evidence = NetworkEvidence(ORGAN)
    weight = gaussian_weight((4, 4, 4))
    for number, height in enumerate((20.0, 1.0)):
        evidence.see(number, torch.stack([torch.zeros(4, 4, 4), torch.full((4, 4, 4), height)])[None], [], weight)
    p = 1 / (1 + math.exp(-1.0))
    alone = 1 - 2 * p / (1 + p)
    assert evidence.measured(1)["soft"] == pytest.approx(alone / 2, abs=1e-6)
    assert "views" not in evidence.measured(1)


def test_shapes_are_in_millimetres_whatever_the_spacing():
    labels = np.zeros((10, 12, 20), np.uint8)
    labels[2:6, 2:8, 4:12] = 1
    labels[8, 10, 18] = 1
    (fine,) = measured_shape(labels, ORGAN, (1.0, 1.0, 1.0)).values()
    (coarse,) = measured_shape(labels[:, :, ::2], ORGAN, (1.0, 1.0, 2.0)).values()
    assert fine["volume"] == pytest.approx(math.log(193))
    assert coarse["volume"] == pytest.approx(fine["volume"], abs=0.02)
    assert fine["extent"] == pytest.approx(math.log(math.sqrt(49 + 81 + 225)))
    assert fine["pieces"] == pytest.approx(1 / 193)
    assert measured_shape(0 * labels, ORGAN, None) == {1: {}}


def test_images_are_measured_per_channel_and_axis():
    random = np.random.default_rng(0)
    image = random.normal(0, 1, (2, 30, 20, 10)).astype(np.float32)
    image[1] *= 2
    found = measured_image(image, (1.0, 2.0, 3.0))
    assert found["field.2"] == pytest.approx(math.log(30))
    assert found["texture.1.1"] - found["texture.0.1"] == pytest.approx(math.log(2), abs=0.05)
    assert found["intensities.1.95"] == pytest.approx(2 * 1.645, abs=0.2)
    one_slice = measured_image(image[:, :1], None)
    assert "texture.0.0" not in one_slice
    assert all(map(math.isfinite, one_slice.values()))


# Harmed copies


@pytest.mark.parametrize("kind", HARMS)
@pytest.mark.parametrize("shape", [(9, 8, 7), (1, 12, 10)])
def test_harms_change_the_image_keep_labels_beside_it_and_are_the_same_again(kind, shape):
    random = np.random.default_rng(0)
    image = random.normal(0, 1, (2, *shape)).astype(np.float32)
    labels = (image[0] > 1).astype(np.int16)
    before = image.copy(), labels.copy()
    for strength in (0.0, 1.0):
        first, second = (
            harmed(image, labels, kind, strength, np.random.default_rng(3), ["zscore", "none"]) for _ in range(2)
        )
        assert np.array_equal(first[0], second[0])
        assert first[0].dtype == np.float32
        assert first[1].shape == first[0].shape[1:]
        assert np.isfinite(first[0]).all()
        assert first[0].shape != image.shape or not np.allclose(first[0], image)
        assert first[0][0].mean() == pytest.approx(0, abs=1e-3)
    assert np.array_equal(image, before[0])
    assert np.array_equal(labels, before[1])


# What follows for a mask


def judge(known, networks, shape, *, alone=False, **options):
    rules = Expectations(
        plan_sha256="", recipe_sha256="", weights_sha256={}, mirror=True, step=0.5, unit="mm", cases=30, copies=3,
        image=IMAGE, structures={"organ": known},
        not_learned={"other": "not learned: 2 patients have it, 8 are needed"},
    )  # fmt: skip
    image = {"intensities.0.50": 0.0, "texture.0.1": 0.0, "field.0": 3.0}
    names = [(1, "organ")] if alone else [(1, "organ"), (2, "other")]
    both, shapes = {1: networks, 2: {}}, {1: shape, 2: SHAPE}
    return expectations_of(rules, names, both, shapes, image, **{"accept_dice": None, "risk": 0.05} | options)


def test_reasons_are_the_features_that_cost_most_in_words():
    found, lacking, findings = judge(
        usual_structure(), {"soft": 0.1, "views": 0.6, "entropy": 0.3}, SHAPE | {"volume": 6.0}
    )
    assert found["organ"].reasons[:2] == (
        "mirrored views have with their mean Dice 0.40, usually 0.95",
        "volume 0.403 ml, usually 2.98 ml",
    )
    assert lacking == {"other": "not learned: 2 patients have it, 8 are needed"}
    assert findings == []


def test_distances_and_components_far_from_what_was_learned_stay_finite():
    steep = rule_of(weights={"soft": 1.0, "volume": 500.0})
    far = judge(usual_structure(hd95=steep, components=steep), NETWORKS, SHAPE | {"volume": 25.0})[0]["organ"]
    assert (far.hd95_mm, far.components) == (1000.0, 1000.0)


def test_status_follows_from_the_accepted_dice_and_the_risk():
    good = judge(usual_structure(), NETWORKS, SHAPE)[0]["organ"]
    assert good.low < good.dice < good.high
    for accepted, status in ((good.low - 0.01, "ok"), (good.dice, "review"), (good.high + 0.02, "reject")):
        found, _, findings = judge(usual_structure(), NETWORKS, SHAPE, alone=True, accept_dice=accepted)
        assert status_of(findings) == status
        assert (found["organ"].risk <= 0.05) == (status == "ok")
    (finding,) = judge(usual_structure(), NETWORKS, SHAPE, alone=True, accept_dice=good.dice)[2]
    assert finding.text.startswith(f"organ may be below Dice {good.dice:g} (chance up to ")


def test_a_structure_of_which_nothing_was_learned_is_for_review_where_a_dice_is_demanded():
    (finding,) = judge(usual_structure(), NETWORKS, SHAPE, accept_dice=0.01)[2]
    unknown = "whether other has Dice 0.01 is unknown: not learned: 2 patients have it, 8 are needed"
    assert (finding.level, finding.text) == ("review", unknown)


def test_a_model_that_learned_nothing_leaves_no_mask_ok_where_a_dice_is_demanded(tiny_run, small_dataset):
    image = sorted((small_dataset / "imagesTs").iterdir())[0]
    found = Predictor(tiny_run, folds=[0], mirror=False, accept_dice=0.8).predict(image)
    unknown = "whether the mask has Dice 0.8 is unknown: not learned: run `medmamba find-best`"
    assert unknown in [finding.text for finding in found.findings if finding.level == "review"]


def test_a_structure_that_no_single_network_decides_for_is_judged_without_views():
    known = usual_structure()
    usual = {name: value for name, value in known.features.items() if name != "views"}
    rule = rule_of(1.5, dict.fromkeys(usual, 0.5))
    found = judge(usual_structure(features=usual, dice=rule), {}, SHAPE)[0]["organ"]
    assert found.reasons[0] == "mask and probabilities have Dice 0.00, usually 0.88"


def test_altered_expectations_are_refused_field_by_field(learned_run):
    stored = json.loads((learned_run / "expectations.json").read_text())
    del stored["sha256_of_record"]
    name = next(iter(stored["structures"]))

    def refused(message, change):
        change(document := json.loads(json.dumps(stored)), document["structures"][name])
        with pytest.raises(ConfigError, match=message):
            Expectations.from_json(json.dumps(document))

    Expectations.from_json(json.dumps(stored))
    refused(r"voxel_errors\[0\]\[1\]: ", lambda top, part: top.update(voxel_errors=[[0.0, 5.0]]))
    refused("must ascend", lambda top, part: top.update(voxel_errors=[[0.5, 0.5], [0.1, 0.9]]))
    refused(r"image\.foo", lambda top, part: top["image"].update(foo=[1.0, 1.0]))
    refused("for the features soft", lambda top, part: part["features"].pop("field"))
    refused(
        "for the features soft",
        lambda top, part: (part["features"].update(x=1.0), part["dice"]["weights"].update(x=1.0)),
    )
    refused(r"dice\.intercept", lambda top, part: part["dice"].update(intercept=1e308))
    refused("views needs mirroring", lambda top, part: (top.update(mirror=False), part["features"].update(views=-3.0)))
    refused("patients", lambda top, part: part.update(patients=-1))


def test_words_of_extreme_values_are_finite():
    shape = {"volume": (1e6, 0.2), "extent": (1e6, 0.1), "pieces": (0.0, 0.02)}
    features = dict.fromkeys(FEATURES, -1e6)
    scores = [-1e6] * 50 + [1e6] * 50
    volume = rule_of(0.0, {}, scores=scores)
    found = judge(usual_structure(shape=shape, features=features, volume=volume), NETWORKS, SHAPE)[0]["organ"]
    assert json.dumps(found.as_dict(), allow_nan=False)


def test_an_empty_mask_has_dice_0_where_every_case_has_the_structure_and_else_no_number():
    found, _, findings = judge(usual_structure(), {}, {}, alone=True, accept_dice=0.5)
    assert (found["organ"].dice, found["organ"].high) == (0.0, 0.0)
    assert status_of(findings) == "reject"
    found, lacking, _ = judge(usual_structure(always_present=False), {}, {})
    assert "organ" not in found
    assert lacking["organ"] == "no voxel of it was found, and some cases rightly have none"


# find-best learns, predict applies


def test_predict_says_what_was_learned_and_the_same_with_folds_of_the_run(learned_run, small_dataset):
    image = sorted((small_dataset / "imagesTs").iterdir())[0]
    rules = read_expectations(learned_run, read_prediction_setup(learned_run).plan_sha256)
    assert rules.copies == 1
    assert set(rules.structures) | set(rules.not_learned) == {"Anterior", "Posterior"}
    predictor = Predictor(learned_run, accept_dice=0.99)
    result = predictor.predict(image)
    assert result.expected
    assert predictor.provenance().expectations_sha256 == rules.hash()
    record = json.loads(json.dumps(result.record()))
    for name, expected in result.expected.items():
        assert 0 <= expected.low <= expected.dice <= expected.high <= 1
        assert record["expected"][name]["dice"] == expected.dice
        assert "too few for a range of 90%" in expected.note or expected.high == 0
    assert result.status in ("review", "reject")
    assert Predictor(learned_run, folds=[0]).predict(image).expected


def test_expectations_of_another_model_are_not_used(learned_run, small_dataset, tmp_path):
    image = sorted((small_dataset / "imagesTs").iterdir())[0]

    def said(run, **options):
        result = Predictor(run, **options).predict(image)
        assert result.expected == {}
        return result.not_learned[""]

    assert said(learned_run, mirror=True) == (
        "not learned for this model: find-best ran without mirroring. Run `medmamba find-best` again"
    )
    assert said(learned_run, patch_size=(16, 24, 24)) == "not learned for another patch size"
    assert "a fold alone" in said(learned_run / "models" / "3d_fullres" / "fold_0")
    other = tmp_path / "run"
    shutil.copytree(learned_run, other)
    plan = Predictor(other).plan
    make_fold(other / "models" / "3d_fullres" / "fold_1", plan, 7)
    assert said(other) == (
        "not learned for this model: fold_1 of 3d_fullres was trained since. Run `medmamba find-best` again"
    )
    make_fold(other / "models" / "3d_fullres" / "fold_2", plan, 8)
    assert "fold_2 of 3d_fullres took no part" in said(other, folds=[0, 2])
    recipe = read_prediction_setup(other).model_copy(update={"temperature": 1.5})
    (other / "best.json").write_text(recipe.sealed_json())
    assert "best.json was made anew since" in said(other)
    (other / "expectations.json").unlink()
    assert said(other) == "not learned: run `medmamba find-best`"


def test_an_altered_file_and_one_of_another_plan_are_refused(learned_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(learned_run, run)
    path = run / "expectations.json"
    text = path.read_text()
    path.write_text(text.replace('"cases": 2', '"cases": 3'))
    with pytest.raises(ConfigError, match=r"expectations\.json"):
        Predictor(run)
    other = Expectations.from_json(text).model_copy(update={"plan_sha256": "0" * 64})
    path.write_text(other.sealed_json())
    with pytest.raises(ConfigError, match=r"expectations\.json: belongs to another plan\. Run `medmamba find-best"):
        Predictor(run)


def test_a_bundle_carries_the_rules_and_says_the_same(learned_run, small_dataset, tmp_path):
    image = sorted((small_dataset / "imagesTs").iterdir())[0]
    native = Predictor(learned_run, device="cpu")
    card = BundleCard(licence="Apache-2.0", intended_use="tests")
    _write(tmp_path, native, _stages(native), card, [])
    assert Predictor(tmp_path).predict(image).expected == native.predict(image).expected


def test_a_run_with_few_patients_says_so_and_invents_no_number(tiny_run, small_run, small_dataset, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.copytree(small_run / "preprocessed", run / "preprocessed")
    find_best(run, mirror=False)
    result = Predictor(run).predict(sorted((small_dataset / "imagesTs").iterdir())[0])
    assert result.expected == {}
    assert result.not_learned["Anterior"] == "not learned: 2 patients in cross-validation, 8 are needed"
    find_best(run, mirror=False, expectations=False)
    assert not (run / "expectations.json").exists()


def judged_case(number, *, found=True):
    shape = {"volume": 8.0 + 0.01 * number, "extent": 3.0, "pieces": 0.0}
    networks = {"soft": 0.1 + 0.01 * number, "entropy": 0.3} if found else {}
    image = {"intensities.0.50": 0.1 * number, "field.0": 3.0}
    truths = (0.9 - 0.01 * number, 1.0, 0.0, 0.01) if found else (0.0, math.nan, 1.0, math.nan)
    return JudgedCase(f"p{number}", "", image, {1: networks}, {1: shape if found else {}}, {1: shape}, {1: truths})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (0, "not learned: the model finds it in no validation case"),
        (1, "not learned: the model finds it in 1 patient, 8 are needed"),
        (7, "not learned: the model finds it in 7 patients, 8 are needed"),
        (8, None),
    ],
)
def test_a_structure_that_the_model_seldom_finds_is_not_learned(found, said):
    learner = ExpectationLearner(SimpleNamespace(hash=str), SimpleNamespace(hash=str), 20, 0)
    learner.judged += [judged_case(number, found=number < found) for number in range(20)]
    rules = learner.rules(ORGAN, weights_sha256={}, mirror=True, step=0.5, unit="mm")
    assert rules.not_learned.get("organ") == said
    assert ("organ" in rules.structures) is (said is None)


# Voxels


def test_doubt_becomes_a_chance_of_error_in_percent():
    probabilities = torch.tensor([[1.0, 0.6, 0.4], [0.0, 0.4, 0.35], [0.0, 0.0, 0.25]])
    assert VoxelUncertainty(PARTS).of_block(probabilities).tolist() == [0, 40, 60]
    learned = VoxelUncertainty(PARTS, [(0.0, 0.0), (0.4, 0.2), (0.6, 0.5)])
    assert learned.of_block(probabilities).tolist() == [0, 20, 50]
    apart = OutputChannels(("whole", "core"), True, ((1, 2), (2,)), (1, 2), None, (0, 1, 2, 3), (0, 1))
    assert VoxelUncertainty(apart).of_block(torch.tensor([[0.9, 0.2], [0.3, 0.01]])).tolist() == [30, 20]


@pytest.mark.parametrize("probabilities", [False, True])
def test_the_map_lies_on_the_images_grid_and_fits_the_probabilities(tiny_run, small_dataset, probabilities):
    image = sorted((small_dataset / "imagesTs").iterdir())[0]
    predictor = Predictor(tiny_run, mirror=False)
    found = predictor.predict(image, uncertainty=True, probabilities=probabilities)
    known = predictor.predict(image, probabilities=True).probabilities
    assert found.uncertainty.shape == found.labels.shape
    assert found.uncertainty.dtype == np.uint8
    assert np.abs(found.uncertainty - 100 * (1 - known.max(axis=0))).max() < 0.51
    assert predictor.predict(image).uncertainty is None


def test_a_folder_gets_maps_and_a_page_with_the_worst_first(learned_run, small_dataset, tmp_path):
    images = small_dataset / "imagesTs"
    report = predict(learned_run, images, tmp_path, uncertainty=True, accept_dice=0.5)
    names = list(report.done)
    assert {f"{name}_uncertainty.nii.gz" for name in names} <= {path.name for path in tmp_path.iterdir()}
    stored = json.loads((tmp_path / "report.json").read_text())["cases"]
    order = worst_first(stored)
    lowest = [min(expected["dice"] for expected in stored[name]["expected"].values()) for name in order]
    assert [stored[name]["status"] for name in order] == sorted(
        (stored[name]["status"] for name in order), key=["reject", "review", "ok"].index
    )
    page = (tmp_path / "report.html").read_text()
    assert "those to look at first on top" in page
    assert page.index(order[0]) < page.index(order[-1])
    assert f"{lowest[0]:.2f}" in page
    assert predict(learned_run, images, tmp_path, uncertainty=True, accept_dice=0.5, resume=True).resumed == names


def test_the_viewer_shows_the_chance_of_error_over_image_and_mask(tiny_run, small_dataset, tmp_path):
    report = predict(tiny_run, small_dataset / "imagesTs", tmp_path, uncertainty=True)
    page = (tmp_path / "report.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="v-data">(.*?)</script>', page, re.DOTALL)[1])
    assert (data["truth"], data["names"]) == (False, ["Anterior", "Posterior"])
    titles = [
        f"{report.done[name].status}: {name}" for name in worst_first({n: r.as_dict() for n, r in report.done.items()})
    ]
    assert [case["title"] for case in data["cases"]] == titles
    assert page.count('data-case="') == len(titles)
    for case, name in zip(data["cases"], (title.split(": ")[1] for title in titles), strict=True):
        mask = read_label_map(tmp_path / f"{name}.nii.gz")
        chance = read_label_map(tmp_path / f"{name}_uncertainty.nii.gz").array
        shown = Display(mask.grid)
        errors, sheet = (
            Image.open(io.BytesIO(base64.b64decode(case[key].split(",")[1]))) for key in ("errors", "sheet")
        )
        assert np.array_equal(np.asarray(errors).reshape(case["shape"]), shown.volume(chance))
        assert np.array_equal(np.asarray(sheet)[..., 2].reshape(case["shape"]), shown.volume(mask.array))
    predict(tiny_run, small_dataset / "imagesTs", tmp_path / "plain")
    assert not (tmp_path / "plain" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_real_browser_says_the_chance_of_error_and_offers_no_truth(tiny_run, small_dataset, tmp_path):
    predict(tiny_run, small_dataset / "imagesTs", tmp_path, uncertainty=True)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1280,900"]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
         (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert re.search(r"At the crosshair: [^;]*; prediction [^,]*, chance of error \d+ %", done.stdout), done.stderr[
        -2000:
    ]
    assert re.search(r'<label style="display: none;"><input type="checkbox" id="v-truth">', done.stdout)


def test_cases_are_ordered_by_status_then_by_the_lowest_expected_dice():
    def record(status, *dices):
        return {"status": status, "expected": {str(n): {"dice": dice} for n, dice in enumerate(dices)}}

    cases = {"a": record("ok", 0.9, 0.6), "b": record("ok", 0.7), "c": record("review", 0.8), "d": record("ok")}
    assert worst_first(cases) == ["c", "a", "b", "d"]
