"""Surface distances: by hand, against a slow reference, and against the published definition."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from surface_reference import GOLDEN, TOLERANCES, masks_of, slow_distances, slow_hausdorff, slow_surface_dice

from medmamba.evaluation.surface import block_codes, surface_distances, surfel_sizes

PUBLISHED = json.loads(GOLDEN.read_text())


def number(value):
    return float(value)


@pytest.mark.parametrize("table", PUBLISHED["areas"], ids=lambda table: str(table["spacing"]))
def test_the_area_of_every_code_is_the_published_one(table):
    np.testing.assert_allclose(surfel_sizes(table["spacing"]), table["sizes"], rtol=1e-12)


@pytest.mark.parametrize("case", PUBLISHED["cases"], ids=lambda case: f"seed{case['seed']}")
def test_distances_equal_the_published_definition_to_a_millionth(case):
    truth, prediction = masks_of(case["seed"], case["shape"])
    found = surface_distances(truth, prediction, case["spacing"])
    for percent, expected in case["hd"].items():
        assert found.hausdorff(float(percent)) == pytest.approx(number(expected), abs=1e-6, nan_ok=True)
    for tolerance, expected in case["nsd"].items():
        assert found.surface_dice(float(tolerance)) == pytest.approx(number(expected), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", [0, 1, 3, 4, 5])
def test_distances_equal_the_slow_reference(seed):
    case = PUBLISHED["cases"][seed]
    truth, prediction = masks_of(seed, case["shape"])
    ways = slow_distances(truth, prediction, case["spacing"], surfel_sizes(case["spacing"]))
    found = surface_distances(truth, prediction, case["spacing"])
    for percent in (50, 95, 100):
        assert found.hausdorff(percent) == pytest.approx(slow_hausdorff(ways, percent), abs=1e-9)
    for tolerance in TOLERANCES:
        assert found.surface_dice(tolerance) == pytest.approx(slow_surface_dice(ways, tolerance), abs=1e-9)


def test_two_plates_three_millimetres_apart_are_three_millimetres_apart():
    truth, prediction = np.zeros((40, 40, 12), bool), np.zeros((40, 40, 12), bool)
    truth[:, :, 2], prediction[:, :, 4] = True, True
    found = surface_distances(truth, prediction, (1.0, 1.0, 1.5))
    assert found.hausdorff(95) == pytest.approx(3.0)
    assert found.hausdorff(100) == pytest.approx(3.0)
    # upper face of the truth to the lower face of the prediction: one voxel of 1.5 mm
    assert found.from_truth.min() == pytest.approx(1.5)
    assert found.surface_dice(3.0) == 1
    assert found.surface_dice(1.0) == 0


def test_a_cube_has_the_area_of_its_faces_without_the_cut_corners():
    size = 20
    found = surface_distances(np.ones((size,) * 3, bool), np.ones((size,) * 3, bool), (1.0, 1.0, 1.0))
    edge = size - 1
    corner, side = 8 * math.sqrt(3) / 8, 12 * edge * math.sqrt(0.5)
    assert found.truth_area.sum() == pytest.approx(6 * edge**2 + side + corner)
    assert found.hausdorff() == 0
    assert found.surface_dice(0.0) == 1


def test_a_block_with_one_corner_has_the_bit_of_that_corner():
    mask = np.zeros((1, 1, 1), bool)
    assert not block_codes(mask).any()
    mask[0, 0, 0] = True
    assert sorted(block_codes(mask).ravel().tolist()) == [1, 2, 4, 8, 16, 32, 64, 128]


def test_empty_masks_have_no_distance_and_one_empty_mask_an_infinite_one():
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert math.isnan(surface_distances(empty, empty, (1, 1, 1)).hausdorff())
    assert math.isnan(surface_distances(empty, empty, (1, 1, 1)).surface_dice(1))
    for pair in ((empty, full), (full, empty)):
        assert surface_distances(*pair, (1, 1, 1)).hausdorff() == math.inf
        assert surface_distances(*pair, (1, 1, 1)).surface_dice(100) == 0
        assert surface_distances(*pair, (1, 1, 1)).mean() == math.inf


def test_a_percentile_that_falls_between_two_pieces_does_not_depend_on_rounding():
    truth, prediction = np.zeros((4, 5, 3), bool), np.zeros((4, 5, 3), bool)
    for voxel in ((0, 0, 0), (0, 0, 2), (1, 0, 1), (2, 2, 1), (3, 4, 0)):
        truth[voxel] = True
    prediction[1, 2, 1] = True
    spacing = (2.080560957181219, 0.9125672406047802, 4.0)
    flipped = surface_distances(truth[::-1], prediction[::-1], spacing)
    assert flipped.hausdorff(95) == surface_distances(truth, prediction, spacing).hausdorff(95)
