"""The Dice coefficient of two masks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def dice(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    """``2 |A and B| / (|A| + |B|)`` of two masks of one shape; nan when both are empty.

    Source: Dice 1945. An absent structure that was rightly left out has no Dice, so it stays out of means.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"masks differ in shape: {truth.shape} and {prediction.shape}")
    total = int(truth.sum()) + int(prediction.sum())
    return 2 * int((truth & prediction).sum()) / total if total else math.nan
