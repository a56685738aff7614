"""Expectations of a prediction are scored against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medmamba.evaluation.expectations import ExpectedMask, risk_area, score_expectations

DICE = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.9, 1.0]), min_size=3, max_size=20)


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
