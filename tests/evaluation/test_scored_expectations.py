"""Expectations of a prediction are scored against the truth."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medmamba.errors import ConfigError
from medmamba.evaluation.calibration import VoxelCalibration
from medmamba.evaluation.expectations import ExpectedMask, risk_by_coverage, score_expectations
from medmamba.evaluation.run import run_evaluation
from medmamba.geometry import Grid, affine_from
from medmamba.images import LabelMap, MedicalImage, ReadOptions, write_image, write_label_map
from medmamba.inference.folder.run import predict

DICE = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.9, 1.0]), min_size=3, max_size=20)


def risk_area(dice, trust):
    return float(risk_by_coverage(dice, trust).mean())


def masks(dice, expected, half=0.1, entropy=0.3):
    pairs = enumerate(zip(dice, expected, strict=True))
    return [
        ExpectedMask(f"case {n}", "organ", true, guess, guess - half, guess + half, 0.9, entropy, None)
        for n, (true, guess) in pairs
    ]


@given(dice=DICE, seed=st.integers(0, 99))
def test_correlations_are_scipys(dice, seed):
    expected = np.random.default_rng(seed).permutation(dice).tolist()
    found = score_expectations(masks(dice, expected))
    if len(set(dice)) == 1:
        assert math.isnan(found.spearman)
        return
    assert found.spearman == pytest.approx(stats.spearmanr(expected, dice).statistic)
    assert found.pearson == pytest.approx(stats.pearsonr(expected, dice).statistic)


@given(dice=DICE, seed=st.integers(0, 99))
def test_areas_lie_between_the_oracle_and_its_opposite_and_ties_are_mixed(dice, seed):
    true = np.array(dice)
    trust = np.random.default_rng(seed).permutation(true)
    assert risk_area(true, true) - 1e-12 <= risk_area(true, trust) <= risk_area(true, -true) + 1e-12
    assert risk_area(true, np.zeros(len(true))) == pytest.approx(float((1 - true).mean()))


def test_the_area_is_the_mean_risk_of_the_most_trusted():
    true = np.array([1.0, 0.5, 0.0])
    assert risk_area(true, np.array([3.0, 2.0, 1.0])) == pytest.approx((0 + 0.25 + 0.5) / 3)
    assert risk_area(true, np.array([3.0, 1.0, 1.0])) == pytest.approx((0 + 0.375 + 0.5) / 3)


def test_coverage_error_and_groups():
    found = score_expectations(masks([0.9, 0.5, 0.8, 0.2], [0.9, 0.65, 0.75, 0.25]))
    assert found.coverage == 0.75
    assert found.mean_error == pytest.approx((0 + 0.15 + 0.05 + 0.05) / 4)
    assert found.mean_width == pytest.approx(0.2)
    assert found.reliability[0] == (1, 0.25, 0.2)
    assert "agreement of folds" not in found.risk_area  # not measured
    assert found.risk_area["oracle"] < found.risk_area["random"] == found.risk_area["entropy alone"]


def test_agreement_of_views_is_a_signal_where_every_mask_has_it_and_curves_end_at_the_mean():
    known = [replace(mask, views=mask.dice) for mask in masks([0.9, 0.5, 0.8, 0.2], [0.9, 0.65, 0.75, 0.25])]
    found = score_expectations(known)
    assert found.risk_area["agreement of mirrored views"] == found.risk_area["oracle"]
    assert "agreement of mirrored views" not in score_expectations([*known, replace(known[0], views=None)]).risk_area
    assert found.risk_curve["oracle"] == [(0.25, 0.1), (0.5, 0.15), (0.75, 0.26667), (1.0, 0.4)]
    assert {curve[-1] for curve in found.risk_curve.values()} == {(1.0, 0.4)}
    assert len(score_expectations(masks([0.5, 0.7] * 900, [0.5, 0.6] * 900)).risk_curve["oracle"]) == 50


# Voxels


@given(seed=st.integers(0, 99), ignored=st.booleans())
def test_calibration_of_voxels_is_that_of_its_definition(seed, ignored, tmp_path_factory):
    random = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("voxels")
    grid = Grid((4, 5, 6), affine_from((2.0, 1.0, 1.0)))
    truth, mask = random.integers(0, 3, (2, 4, 5, 6)).astype(np.uint8)
    percent = random.integers(0, 101, (4, 5, 6)) * random.integers(0, 2, (4, 5, 6)).astype(np.uint8)
    write_label_map(folder / "a_uncertainty.nii.gz", percent, like=grid)
    seen = VoxelCalibration(
        {"a_uncertainty": folder / "a_uncertainty.nii.gz"}, ReadOptions(), ignore=2 if ignored else None
    )
    seen.see("a", LabelMap(mask, grid), truth)
    seen.see("without a map", LabelMap(mask, grid), truth)
    found = seen.scores()
    for name, here in (("all voxels", truth >= 0), ("voxels of 1 % and more", percent > 0)):
        here &= ~(ignored & (truth == 2))
        chance, wrong = percent[here] / 100, (mask != truth)[here]
        group = np.minimum(percent[here] // 10, 9)
        parts = [(chance[group == n] - wrong[group == n]).sum() for n in range(10)]
        assert found[name].ece == pytest.approx(np.abs(parts).sum() / here.sum())
        assert found[name].brier == pytest.approx(((chance - wrong) ** 2).mean())
        assert found[name].voxels == here.sum()
        assert sum(count for count, _, _ in found[name].reliability) == here.sum()
    assert seen.cases == 1


def test_probabilities_are_used_where_there_is_no_map_and_other_files_are_named(tmp_path, monkeypatch):
    grid = Grid((2, 2, 1), affine_from((1.0, 1.0, 1.0)))
    probabilities = np.zeros((2, 2, 2, 1), np.float32)
    probabilities[0] = [[[0.9], [0.2]], [[0.6], [0.5]]]
    probabilities[1] = 1 - probabilities[0]
    write_image(tmp_path / "a_probabilities.nii.gz", probabilities, like=MedicalImage(probabilities, grid))
    write_label_map(tmp_path / "b_uncertainty.nii.gz", np.full((2, 2, 1), 101, np.uint8), like=grid)
    write_label_map(tmp_path / "c_uncertainty.nii.gz", np.zeros((3, 2, 1), np.uint8), like=Grid((3, 2, 1), grid.affine))
    (tmp_path / "d_uncertainty.nii.gz").write_bytes(b"no image")
    seen = VoxelCalibration(
        {path.name.removesuffix(".nii.gz"): path for path in tmp_path.iterdir()}, ReadOptions(), channels=2
    )
    mask = LabelMap(np.array([[[0], [1]], [[0], [0]]], np.uint8), grid)
    for case in "abcd":
        seen.see(case, mask, np.zeros((2, 2, 1), np.uint8))
    assert seen.scores()["all voxels"].mean_chance == pytest.approx((0.1 + 0.2 + 0.4 + 0.5) / 4)
    assert seen.scores()["all voxels"].errors == 0.25
    assert seen.cases == 1
    far, other, broken = seen.warnings
    unknown = VoxelCalibration(seen.files, ReadOptions())
    unknown.see("a", mask, np.zeros((2, 2, 1), np.uint8))
    assert unknown.scores() == {}
    monkeypatch.setattr("medmamba.evaluation.calibration.MOST_BYTES", 4 * 2 * 4 - 1)
    seen.see("a", mask, np.zeros((2, 2, 1), np.uint8))
    assert seen.warnings[-1].startswith("a: a_probabilities.nii.gz is too large to be read; predict with --uncertainty")
    assert seen.cases == 1
    assert far.startswith(
        "b: mask and b_uncertainty.nii.gz disagree: it holds values beyond 0 and 100 %; left out of the"
    )
    assert other.startswith("c: mask and c_uncertainty.nii.gz ")
    assert "d_uncertainty.nii.gz" in broken
    assert broken.endswith("The calibration of its voxels was left out.")


def test_evaluate_scores_what_predict_expects_and_draws_it(learned_run, small_dataset, tmp_path):
    masks = tmp_path / "masks"
    images, truths = tmp_path / "images", tmp_path / "truth"
    images.mkdir()
    truths.mkdir()
    for image in sorted((small_dataset / "imagesTr").iterdir())[:3]:
        shutil.copyfile(image, images / image.name)
        name = image.name.replace("_0000", "")
        shutil.copyfile(small_dataset / "labelsTr" / name, truths / name)
    report = predict(learned_run, images, masks, uncertainty=True)
    assert not report.failed, report.failed
    result = run_evaluation(masks, truths)
    stored = json.loads((masks / "expected_quality.json").read_text())
    assert stored["scores"]["all"]["masks"] == result.expectations["all"].masks > 0
    assert stored["voxels"]["all voxels"] == json.loads(json.dumps(result.voxels["all voxels"].as_dict()))
    assert 0 < result.voxels["voxels of 1 % and more"].brier < 1
    page = (masks / "evaluation.html").read_text()
    for title in (
        "Reliability of all",
        "Risk-coverage of all",
        "Reliability of all voxels",
        "Reliability of voxels of 1 % and more",
    ):
        assert page.count(f'aria-label="{title}"') == 1, title
    assert page.count("<polyline") == sum(1 + len(each.risk_curve) for each in result.expectations.values()) + 2
    places = [
        float(number) for pair in re.findall(r'points="([^"]*)"', page) for number in pair.replace(",", " ").split()
    ]
    assert places
    assert min(places) >= 0
    assert max(places) <= 266  # inside the drawing

    edited = sorted(masks.glob("*_uncertainty.nii.gz"))[0].name.replace("_uncertainty", "")
    shutil.copyfile(truths / edited, masks / edited)
    again = run_evaluation(masks, truths)
    assert again.expectations["all"].masks == result.expectations["all"].masks * 2 // 3
    assert again.voxels["all voxels"].voxels < result.voxels["all voxels"].voxels
    case = edited.removesuffix(".nii.gz")
    assert again.evaluation.warnings[0].startswith(f"1 mask changed since the prediction, the first is {case}: what ")

    before = {path.name: path.read_bytes() for path in masks.glob("e*")}
    spoiled = json.loads((masks / "report.json").read_text())
    spoiled["cases"][case]["expected"][next(iter(spoiled["cases"][case]["expected"]))]["high"] = math.nan
    (masks / "report.json").write_text(json.dumps(spoiled))
    with pytest.raises(ConfigError, match=r"report\.json: .*high.*finite number"):
        run_evaluation(masks, truths)
    assert {path.name: path.read_bytes() for path in masks.glob("e*")} == before
