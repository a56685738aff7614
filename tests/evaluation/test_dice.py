"""Dice on masks whose overlap can be counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medmamba.evaluation.dice import dice


def test_dice_of_masks_that_can_be_counted():
    truth, prediction = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    truth[0], prediction[0, :2] = True, True  # 16 and 8 voxels, 8 shared
    assert dice(truth, prediction) == pytest.approx(2 * 8 / 24)
    assert dice(truth, truth) == 1
    assert dice(truth, ~truth) == 0
    assert dice(truth, np.zeros_like(truth)) == 0


def test_two_empty_masks_have_no_dice():
    empty = np.zeros((2, 2, 2), bool)
    assert math.isnan(dice(empty, empty))


def test_masks_of_other_shapes_are_not_compared():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and \(2, 2, 3\)"):
        dice(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool))
