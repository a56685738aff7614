"""Normalisation in slabs: what the formulas say of the whole image, whatever order it is stored in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from medmamba.geometry import Grid
from medmamba.plans.normalizers import NORMALIZERS
from medmamba.plans.schema import Normalization
from medmamba.preprocessing.case import bounding_box, preprocess_case
from medmamba.preprocessing.normalize import FUNCTIONS, nonzero_mask_of, normalized_slabs

CT = {"percentile_00_5": -50.0, "percentile_99_5": 70.0, "mean": 10.0, "std": 20.0}


def scheme(**fields):
    return Normalization.model_validate({"use_mask": False, **fields})


def normalized(image, s):
    return np.concatenate(list(normalized_slabs(image, [s], nonzero_mask_of(image, [s]))), axis=1)


def expected(channel, s):
    values = channel.astype(np.float64)
    inside = channel != 0
    match s.scheme:
        case "zscore":
            nonzero_mask = values[inside] if s.use_mask else values
            return np.where(inside | (not s.use_mask), (values - nonzero_mask.mean()) / nonzero_mask.std(), 0)
        case "ct":
            return (np.clip(values, -50, 70) - 10) / 20
        case "rescale_to_0_1":
            return (values - values.min()) / (values.max() - values.min())
        case "rgb_to_0_1":
            return values / 255
    return values


@pytest.mark.parametrize(
    "fields",
    [
        {"scheme": "zscore"},
        {"scheme": "zscore", "use_mask": True},
        {"scheme": "ct", **CT},
        {"scheme": "rescale_to_0_1"},
        {"scheme": "rgb_to_0_1"},
        {"scheme": "none"},
    ],
    ids=str,
)
def test_slabs_are_the_whole_image_on_the_scale_to_the_bit_in_every_storage_order(fields):
    random = np.random.default_rng(0)
    image = random.normal(5, 40, (1, 37, 11, 13)).astype(np.float32)
    image[:, :9] = 0
    one = scheme(**fields)
    result = normalized(image, one)
    assert np.allclose(result[0], expected(image[0], one), atol=2e-6)
    assert np.array_equal(normalized(image.copy(order="F"), one), result)


def test_a_cavity_without_signal_belongs_to_the_body_and_what_is_open_to_the_outside_does_not():
    image = np.zeros((1, 40, 9, 9), np.float32)
    image[:, 2:38, 1:8, 1:8] = 3
    image[:, 10:20, 3:6, 3:6] = 0  # enclosed, across the border of two slabs
    image[:, 25:30, 4, :] = 0  # a channel from side to side
    nonzero_mask = np.zeros(image.shape[1:], bool)
    nonzero_mask[2:38, 1:8, 1:8] = True
    nonzero_mask[25:30, 4] = False
    masked = scheme(scheme="zscore", use_mask=True)
    assert np.array_equal(nonzero_mask_of(image, [scheme(scheme="zscore"), masked]), nonzero_mask)
    values = image[0].astype(np.float64)
    wanted = np.where(nonzero_mask, (values - values[nonzero_mask].mean()) / values[nonzero_mask].std(), 0)
    assert np.allclose(normalized(image, masked)[0], wanted, atol=1e-6)
    assert nonzero_mask_of(image, [scheme(scheme="zscore")]) is None


def test_a_constant_image_becomes_zero():
    assert not normalized(np.full((1, 4, 4, 4), 7.0, np.float32), scheme(scheme="zscore")).any()


def test_an_image_without_any_signal_has_no_body_and_stays_zero():
    image = np.zeros((1, 4, 4, 4), np.float32)
    masked = scheme(scheme="zscore", use_mask=True)
    assert not nonzero_mask_of(image, [masked]).any()
    assert not normalized(image, masked).any()


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_box_holds_all_that_is_not_zero_in_any_channel(order):
    image = np.zeros((2, 6, 7, 8), np.float32)
    image[0, 2, 3, 4], image[1, 4, 1, 6] = 1, -1
    assert bounding_box(image.copy(order=order)) == ((2, 1, 4), (5, 4, 7))
    assert bounding_box(np.zeros((1, 3, 4, 5))) == ((0, 0, 0), (3, 4, 5))


@pytest.mark.parametrize("spacing_mm", [[1.0, 1.0, 1.0], [1.5, 1.0, 0.7]], ids=str)
def test_the_body_in_which_channels_are_normalised_goes_the_way_of_the_labels(spacing_mm):
    nonzero_mask = np.zeros((14, 12, 10), np.int16)
    nonzero_mask[1:7, 1:6, 1:5] = nonzero_mask[8:13, 7:11, 6:9] = 1
    image = np.random.default_rng(0).normal(5, 1, (2, *nonzero_mask.shape)).astype(np.float32) * nonzero_mask
    image[0, :7], image[1, 7:] = 0, 0  # either channel has one half of it
    masked = scheme(scheme="zscore", use_mask=True)
    schemes = [masked, scheme(scheme="zscore")]
    plan = SimpleNamespace(normalization=schemes, axis_order=[2, 0, 1], reorient=True, conventions="medmamba")
    configuration = SimpleNamespace(spacing_mm=spacing_mm)
    grid = Grid(nonzero_mask.shape, np.eye(4))
    case = preprocess_case("c", image, grid, plan, configuration, nonzero_mask)
    assert case.nonzero_mask.any()
    assert not case.nonzero_mask.all()
    assert np.array_equal(case.nonzero_mask, case.labels == 1)
    if spacing_mm == [1.0, 1.0, 1.0]:
        assert not case.image[0][~case.nonzero_mask].any()
    assert preprocess_case("c", image, grid, plan, configuration).nonzero_mask is None
    plan.normalization = [scheme(scheme="zscore")] * 2
    assert preprocess_case("c", image, grid, plan, configuration, nonzero_mask).nonzero_mask is None


def test_every_normalisation_of_the_planner_is_carried_out_by_a_function_of_its_name():
    assert list(NORMALIZERS) == list(FUNCTIONS)
