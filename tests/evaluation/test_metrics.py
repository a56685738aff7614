"""Counts and ratios that can be done by hand, and what they are when a mask is empty."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medmamba.evaluation.lesions import count_lesions
from medmamba.evaluation.metrics import METRICS, MaskPair, score_case, score_pair
from medmamba.evaluation.options import EvaluateOptions
from medmamba.geometry import Grid, affine_from


def boxes():
    truth, prediction = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    truth[2:6, 2:6, 2:6] = True  # 64 voxels
    prediction[2:6, 2:6, 4:8] = True  # 64 voxels, 32 shared
    return truth, prediction


def score_masks(truth, prediction, spacing_mm, voxel_ml=None):
    return score_pair(MaskPair.of_masks(truth, prediction, spacing_mm), voxel_ml)


def values(score, *names):
    return tuple(score.value(name) for name in names)


def test_ratios_of_two_boxes():
    score = score_masks(*boxes(), (1, 1, 1), voxel_ml=0.001)
    assert (score.truth_voxels, score.prediction_voxels, score.overlap_voxels) == (64, 64, 32)
    assert score.value("dice") == 0.5
    assert score.value("iou") == pytest.approx(32 / 96)
    assert score.value("sensitivity") == score.value("precision") == 0.5
    assert score.value("specificity") == pytest.approx((1000 - 64 - 32) / (1000 - 64))
    assert score.value("volume_bias") == 0
    assert score.truth_ml == pytest.approx(0.064)


def test_distances_follow_the_spacing():
    near, far = (score_masks(*boxes(), (1, 1, k)).value("hd95_mm") for k in (1.0, 3.0))
    assert far == pytest.approx(3 * near)


def test_identical_disjoint_and_empty_masks():
    truth, prediction = boxes()
    empty = np.zeros_like(truth)
    same = score_masks(truth, truth, (1, 1, 1))
    assert values(same, "dice", "iou", "hd95_mm", "nsd", "lesion_f1") == (1, 1, 0, 1, 1)
    assert score_masks(truth, np.roll(truth, 4, axis=2), (1, 1, 1)).value("dice") == 0
    absent = score_masks(empty, empty, (1, 1, 1))
    undefined = [name for name in METRICS if math.isnan(absent.value(name))]
    assert undefined == [name for name in METRICS if name != "specificity"]
    assert absent.value("specificity") == 1
    missed = score_masks(truth, empty, (1, 1, 1))
    assert values(missed, "dice", "iou", "nsd", "sensitivity", "volume_error") == (0, 0, 0, 0, 1)
    assert missed.value("hd95_mm") == math.inf
    assert math.isnan(missed.value("precision"))
    assert missed.value("specificity") == 1
    invented = score_masks(empty, prediction, (1, 1, 1))
    assert (invented.value("dice"), invented.value("precision"), invented.value("lesion_precision")) == (0, 0, 0)
    assert invented.value("hd95_mm") == math.inf
    assert math.isnan(invented.value("sensitivity"))
    assert invented.value("specificity") == pytest.approx(1 - 64 / 1000)


def test_undefined_and_infinite_numbers_are_strict_json():
    truth, _ = boxes()
    record = score_masks(truth, np.zeros_like(truth), (1, 1, 1)).as_dict()
    assert record["hd95_mm"] == "inf"
    assert record["precision"] is None
    json.dumps(record, allow_nan=False)


def test_lesions_are_found_missed_and_invented_one_by_one():
    truth, prediction = np.zeros((20, 20, 5), bool), np.zeros((20, 20, 5), bool)
    truth[1:4, 1:4, 1], truth[10:14, 10:14, 2], truth[17, 17, 3] = True, True, True
    truth[18, 18, 4] = True  # touches the one before by its corner: the same lesion
    prediction[3:5, 3:5, 1], prediction[11, 11, 2], prediction[1, 18, 0] = True, True, True
    found = count_lesions(truth, prediction)
    assert (found.in_truth, found.found, found.in_prediction, found.false) == (3, 2, 3, 1)
    assert found.sensitivity == found.precision == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(2 / 3)


def test_regions_join_labels():
    truth = np.zeros((6, 6, 6), int)
    truth[:2], truth[2:4] = 1, 2
    prediction = np.zeros_like(truth)
    prediction[:2], prediction[2:4] = 2, 1  # both labels wrong, the region right
    scores = score_case(truth, prediction, Grid((6, 6, 6)), {"a": (1,), "b": (2,), "whole": (1, 2)})
    assert (scores["a"].value("dice"), scores["b"].value("dice"), scores["whole"].value("dice")) == (0, 0, 1)


def test_a_flat_image_is_compared_as_contours_in_pixels():
    truth, prediction = np.zeros((30, 30, 1), int), np.zeros((30, 30, 1), int)
    truth[5:25, 5:25], prediction[5:25, 8:25] = 1, 1
    score = score_case(truth, prediction, Grid((30, 30, 1)), {"cell": (1,)})["cell"]
    assert score.truth_ml is None
    assert score.values["hd95_px"] == pytest.approx(3.0)
    assert score.values["nsd_px"] == pytest.approx(score_of_contours(tolerance_px=1.0).values["nsd_px"])
    assert score_of_contours(tolerance_px=3.0).values["nsd_px"] == 1
    assert (
        score.values["hd95_mm"] is score.values["assd_mm"] is score.values["nsd"] is None
    )  # no millimetres, no number


def score_of_contours(**tolerance):
    truth, prediction = np.zeros((30, 30, 1), int), np.zeros((30, 30, 1), int)
    truth[5:25, 5:25], prediction[5:25, 8:25] = 1, 1
    return score_case(truth, prediction, Grid((30, 30, 1)), {"cell": (1,)}, EvaluateOptions(**tolerance))["cell"]


def test_pixels_are_no_number_of_an_image_with_millimetres():
    score = score_masks(*boxes(), (1, 1, 1))
    assert score.values["hd95_px"] is score.values["nsd_px"] is None
    assert score.as_dict()["hd95_px"] is None
    assert score.values["assd_mm"] <= score.values["hd95_mm"]


@given(
    truth=arrays(bool, (4, 5, 3)),
    prediction=arrays(bool, (4, 5, 3)),
    axis=st.integers(0, 2),
    spacing=st.tuples(*[st.floats(0.3, 4)] * 3),
)
def test_scores_do_not_depend_on_how_the_body_is_stored(truth, prediction, axis, spacing):
    straight = score_masks(truth, prediction, spacing)
    flipped = score_masks(np.flip(truth, axis), np.flip(prediction, axis), spacing)
    turned = score_masks(truth.transpose(2, 0, 1), prediction.transpose(2, 0, 1), (spacing[2], *spacing[:2]))
    for name in ("dice", "iou", "sensitivity", "specificity", "lesion_f1"):
        values = [one.value(name) for one in (straight, flipped, turned)]
        assert values == pytest.approx([values[0]] * 3, nan_ok=True)
    assert flipped.value("hd95_mm") == pytest.approx(straight.value("hd95_mm"), nan_ok=True)
    assert turned.value("hd95_mm") == pytest.approx(straight.value("hd95_mm"), nan_ok=True)
    # areas of ambiguous blocks depend on the axis in the published table, so the surface Dice is looked at flipped only
    assert 0 <= straight.value("nsd") <= 1 or math.isnan(straight.value("nsd"))


def test_volumes_are_in_millilitres_of_the_affine():
    grid = Grid((10, 10, 10), affine_from((2.0, 0.5, 3.0)))
    truth, prediction = boxes()
    score = score_case(truth.astype(int), prediction.astype(int), grid, {"a": (1,)})["a"]
    assert score.truth_ml == pytest.approx(64 * 3 / 1000)


def test_lesions_are_counted_by_size_over_all_cases():
    from medmamba.evaluation.report import Evaluation

    truth = np.zeros((40, 40, 40), int)
    truth[1:3, 1:3, 1:3] = 1  # 0.008 ml, missed
    truth[10:12, 1:3, 1:3] = 1  # 0.008 ml, found
    truth[20:35, 20:35, 20:35] = 1  # 3.375 ml, found
    prediction = np.zeros_like(truth)
    prediction[10, 1, 1] = prediction[25, 25, 25] = 1
    score = score_case(truth, prediction, Grid(truth.shape, np.eye(4)), {"lesion": [1]})
    rows = Evaluation({"lesion": [1]}, {"a": score, "b": score}).lesions_by_size("lesion")
    assert [(row["lesions"], row["found"]) for row in rows] == [(4, 2), (0, 0), (2, 2), (0, 0)]
    assert [row["sensitivity"] for row in rows] == [0.5, None, 1.0, None]
    assert rows[0] == {"from": 0.0, "to": 0.1, "unit": "ml", "lesions": 4, "found": 2, "sensitivity": 0.5}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_image_of_one_slice_is_flat_along_whichever_axis(axis):
    j, i = np.mgrid[:40, :40]
    truth, mask = (i - 18) ** 2 + (j - 20) ** 2 < 100, (i - 20) ** 2 + (j - 19) ** 2 < 140
    spacing = [1.0, 2.0]
    spacing.insert(axis, 3.0)
    volumes = (np.expand_dims(volume.astype(np.uint8), axis) for volume in (truth, mask))
    score = score_case(*volumes, Grid(np.expand_dims(truth, axis).shape, np.diag([*spacing, 1.0])), {"disc": [1]})
    flat = MaskPair.of_masks(truth, mask, (1.0, 2.0))
    for metric in ("hd95_mm", "assd_mm", "nsd"):
        assert score["disc"].value(metric) == METRICS[metric].measure(flat), metric
