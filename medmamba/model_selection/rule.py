"""Fit of a rule of expected quality: few numbers, none negative, with errors from patients that it has not seen."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medmamba.inference.expected import width_of
from medmamba.models.expectations import QualityRule

RIDGE = 0.01
"""Penalty of squared weights of standardised features, per row."""
PARTS = 5
"""Parts of the patients, each of which is judged by a rule of the others."""
SEED = 20
LEAST_WIDTH = 0.2
"""Smallest width of errors as a fraction of the mean one."""

Vector = NDArray[np.float64]


def fit_rule(names: Sequence[str], features: Vector, values: Vector, patients: Sequence[str]) -> QualityRule:
    """The rule for values (rows,) on a scale where larger is worse, from features (rows, len(names)).

    Scores are errors of rows whose patient was left out of the fit (cross-conformal prediction), each patient with the
    same mass among one more than there are, so that of a new patient like these the bounds hold.
    """
    intercept, weights, spread = _fit(features, values)
    scores = np.empty(len(values))
    for part in _parts(patients):
        own_intercept, own_weights, own_spread = _fit(features[~part], values[~part])
        expected = own_intercept + features[part] @ own_weights
        widths = np.array([width_of(own_spread, value) for value in expected])
        scores[part] = (values[part] - expected) / widths
    distinct, counts = np.unique(np.asarray(patients), return_counts=True)
    rows_of = dict(zip(distinct.tolist(), counts.tolist(), strict=True))
    masses = np.array([1 / (len(distinct) + 1) / rows_of[patient] for patient in patients])
    order = np.argsort(scores, kind="stable")
    return QualityRule(
        intercept=round(intercept, 6),
        weights={name: round(float(weight), 6) for name, weight in zip(names, weights, strict=True) if weight > 1e-6},
        spread=(max(round(spread[0], 6), 1e-6), round(spread[1], 6), round(spread[2], 6)),
        scores=[round(float(score), 5) for score in scores[order]],
        masses=[float(f"{mass:.9g}") for mass in masses[order]],
    )


def _parts(patients: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Rows of each part of the patients, who are drawn by a fixed seed."""
    distinct = sorted(set(patients))
    drawn = np.random.default_rng(SEED).permutation(len(distinct))
    number = {distinct[index]: place % min(PARTS, len(distinct)) for place, index in enumerate(drawn.tolist())}
    parts = np.array([number[patient] for patient in patients])
    return [parts == part for part in range(max(number.values()) + 1)]


def _fit(features: Vector, values: Vector) -> tuple[float, Vector, tuple[float, float, float]]:
    """Intercept and weights by non-negative ridge regression, and how errors grow with the value, by the same."""
    from scipy.optimize import nnls

    mean, deviation = features.mean(axis=0), features.std(axis=0)
    known = deviation > 1e-9
    scaled = (features[:, known] - mean[known]) / deviation[known]
    count = scaled.shape[1]
    weights = np.zeros(features.shape[1])
    if count:
        penalty = np.sqrt(RIDGE * len(values)) * np.eye(count)
        found, _ = nnls(np.vstack([scaled, penalty]), np.concatenate([values - values.mean(), np.zeros(count)]))
        weights[known] = found / deviation[known]
    intercept = float(values.mean() - mean @ weights)
    expected = intercept + features @ weights
    errors = np.abs(values - expected)
    start = float(np.percentile(expected, 10))
    (least, slope), _ = nnls(np.stack([np.ones_like(errors), np.maximum(expected - start, 0)], axis=1), errors)
    least = max(float(least), LEAST_WIDTH * float(errors.mean()), 1e-6)
    return intercept, weights, (least, float(slope), start)
