"""Normalisation in slabs: what the formulas say of the whole image, whatever order it is stored in."""

from __future__ import annotations

import numpy as np
import pytest

from medmamba.plans.schema import Normalization
from medmamba.preprocessing.case import bounding_box
from medmamba.preprocessing.normalize import normalized_slabs

CT = {"percentile_00_5": -50.0, "percentile_99_5": 70.0, "mean": 10.0, "std": 20.0}


def scheme(**fields):
    return Normalization.model_validate({"use_mask": False, **fields})


def expected(channel, s):
    values = channel.astype(np.float64)
    inside = channel != 0
    match s.scheme:
        case "zscore":
            body = values[inside] if s.use_mask else values
            return np.where(inside | (not s.use_mask), (values - body.mean()) / body.std(), 0)
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
    result = np.concatenate(list(normalized_slabs(image, [one])), axis=1)
    assert np.allclose(result[0], expected(image[0], one), atol=2e-6)
    stored = image.copy(order="F")
    assert np.array_equal(np.concatenate(list(normalized_slabs(stored, [one])), axis=1), result)


def test_a_constant_image_becomes_zero():
    (slab,) = normalized_slabs(np.full((1, 4, 4, 4), 7.0, np.float32), [scheme(scheme="zscore")])
    assert not slab.any()


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_box_holds_all_that_is_not_zero_in_any_channel(order):
    image = np.zeros((2, 6, 7, 8), np.float32)
    image[0, 2, 3, 4], image[1, 4, 1, 6] = 1, -1
    assert bounding_box(image.copy(order=order)) == ((2, 1, 4), (5, 4, 7))
    assert bounding_box(np.zeros((1, 3, 4, 5))) == ((0, 0, 0), (3, 4, 5))
