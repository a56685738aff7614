"""Resampling against scipy's own zoom, and against truths that can be computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medmamba.geometry.grid import separate_axis
from medmamba.preprocessing.case import shape_at_spacing
from medmamba.preprocessing.resample import resample_labels, resample_slabs

CASES = json.loads((Path(__file__).parents[1] / "data" / "planner_cases" / "function_cases.json").read_text())


def resample_image(array, shape, coarse_axis=None):
    return resample_slabs([array], array.shape, shape, coarse_axis)


@pytest.mark.parametrize("case", CASES["new_shape"])
def test_the_new_shape_is_nnunets(case):
    assert list(shape_at_spacing(case["shape"], case["spacing"], case["new_spacing"])) == case["new_shape"]


@pytest.mark.parametrize("case", CASES["separate_axis_resampling"])
def test_the_separate_axis_is_nnunets(case):
    assert separate_axis(tuple(case["current_spacing"]), tuple(case["new_spacing"])) == case["axis"]


@pytest.mark.parametrize("shape", [(14, 9, 23), (7, 20, 11), (5, 5, 5), (9, 13, 30)])
def test_matrix_products_equal_scipys_cubic_zoom(shape):
    image = np.random.default_rng(0).normal(size=(9, 13, 11)).astype(np.float32)
    factors = [new / old for new, old in zip(shape, image.shape, strict=True)]
    expected = ndimage.zoom(image.astype(np.float64), factors, order=3, mode="nearest", grid_mode=True)
    assert np.abs(resample_image(image[None], shape)[0] - expected).max() < 2e-5


def test_a_linear_ramp_keeps_its_place_in_the_world():
    ramp = np.arange(20, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    fine = resample_image(ramp[None], (40, 4, 4))[0, :, 0, 0]
    centres = (np.arange(40) + 0.5) / 2 - 0.5
    assert np.abs(fine[8:-8] - centres[8:-8]).max() < 1e-3


def test_nothing_is_invented_across_a_coarse_axis():
    image = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    finer = resample_image(image, (6, 8, 8), coarse_axis=0)
    assert np.array_equal(finer[:, 1::2], image)
    assert np.array_equal(finer[:, ::2], image)


@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(1, 12)] * 3))
def test_labels_never_gain_a_value(old, new):
    labels = np.random.default_rng(2).choice([0, 3, 7], size=old)
    assert set(np.unique(resample_labels(labels, new))) <= set(np.unique(labels))


def test_a_ball_keeps_its_centre_of_mass():
    grid = np.indices((31, 31, 31)) - 15
    ball = ((grid**2).sum(0) < 81).astype(np.int16)
    smaller = resample_labels(ball, (21, 45, 31))
    centre = (np.array(ndimage.center_of_mass(smaller)) + 0.5) * 31 / np.array(smaller.shape) - 0.5
    assert np.abs(centre - 15).max() < 0.05
