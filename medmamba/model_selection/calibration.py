"""Temperature of the probabilities and limits of uncertainty, measured by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def quality_limits(entropies: Sequence[float | None], dices: Sequence[float]) -> Limits | None:
    """Limits that hardly any usual case passes; None for too few cases.

    Args:
        entropies: mean entropy of the predicted foreground of each validation case; None without foreground.
        dices: mean Dice of the fold that had not seen the case; nan without structures.

    Entropy: the 95th percentile. Agreement of folds: the 5th percentile of the Dice with the truth. A case of
    cross-validation has only one fold that has not seen it, so how far folds differ from their mean cannot be measured
    there; how far one differs from the truth bounds it, because their mean is nearer to the truth than each of them.
    """
    known = np.array([pair for pair in zip(entropies, dices, strict=True) if pair[0] is not None], float).reshape(-1, 2)
    known = known[~np.isnan(known[:, 1])]
    if len(known) < MIN_CASES:
        return None
    lower, upper = np.percentile(known[:, 1], (25, 75))
    usual = known[known[:, 1] >= lower - FENCE * (upper - lower)]
    if len(usual) < MIN_CASES:
        return None
    return Limits(
        max_entropy=round(float(np.percentile(usual[:, 0], 100 - ALARM_PERCENT, method="higher")), 4) + 1e-4,
        min_agreement=math.floor(float(np.percentile(usual[:, 1], ALARM_PERCENT, method="lower")) * 1e4) / 1e4,
        cases=len(usual),
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

    mean, before = losses(1.0)
    best = mean, 1.0
    for temperature in map(float, TEMPERATURES):
        mean, after = losses(temperature)
        if bool((after <= before).all()):
            best = min(best, (mean, temperature))
    return round(best[1], 4)
