"""The Dice coefficient of label maps."""

from __future__ import annotations

import math
from collections.abc import Iterable

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


def dice_per_label(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], labels: Iterable[int]
) -> dict[int, float]:
    """Dice of each label value of two label maps of one shape."""
    return {label: dice(truth == label, prediction == label) for label in labels}
