"""Temperature of the probabilities and limits of uncertainty, measured by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from medmamba.models.prediction_setup import Limits

TEMPERATURES = np.geomspace(0.5, 4.0, 25)
MIN_CASES = 10
"""Fewest usual cases to measure limits on; with fewer the fixed ones stay (see inference/quality.py)."""
ALARM_PERCENT = 5.0
"""Usual cases that the limits may send to review."""
FENCE = 1.5
"""A case whose Dice lies more than this many interquartile ranges below the lower quartile is not usual (Tukey)."""


class Uncertainty(NamedTuple):
    """Of one validation case: mean entropy of the foreground and mean Dice of the fold that had not seen it."""

    entropy: float | None
    dice: float


def quality_limits(cases: Sequence[Uncertainty]) -> Limits | None:
    """Limits that hardly any usual case passes; None for too few cases.

    Entropy: the 95th percentile. Agreement of folds: the 5th percentile of the Dice with the truth. A case of
    cross-validation has only one fold that has not seen it, so how far folds differ from their mean cannot be measured
    there; how far one differs from the truth bounds it, because their mean is nearer to the truth than each of them.
    """
    known = [case for case in cases if case.entropy is not None and not math.isnan(case.dice)]
    if not known:
        return None
    scores = np.array([case.dice for case in known])
    lower, upper = np.percentile(scores, (25, 75))
    usual = scores >= lower - FENCE * (upper - lower)
    if usual.sum() < MIN_CASES:
        return None
    entropies = np.array([case.entropy for case in known])[usual]
    return Limits(
        max_entropy=round(float(np.percentile(entropies, 100 - ALARM_PERCENT, method="higher")), 4) + 1e-4,
        min_agreement=math.floor(float(np.percentile(scores[usual], ALARM_PERCENT, method="lower")) * 1e4) / 1e4,
        cases=int(usual.sum()),
    )


def softmax_temperature(logits: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> float:
    """The divisor of logits (voxels, classes) with the smallest cross-entropy that raises it for no class.

    1 where there is nothing to measure: sigmoid heads, and ensembles of configurations.
    """
    if not sum(map(len, logits)):
        return 1.0
    values, truth = torch.cat(list(logits)), torch.cat(list(targets))

    def losses(temperature: float) -> tuple[float, torch.Tensor]:
        each = torch.nn.functional.cross_entropy(values / temperature, truth, reduction="none").double()
        sums = torch.zeros(values.shape[1], dtype=torch.float64).index_add_(0, truth, each)
        return float(each.mean()), sums

    _, before = losses(1.0)
    best = (losses(1.0)[0], 1.0)
    for temperature in map(float, TEMPERATURES):
        mean, after = losses(temperature)
        if bool((after <= before).all()):
            best = min(best, (mean, temperature))
    return round(best[1], 4)
