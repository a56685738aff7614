"""The Dice coefficient of two masks, and of the output channels of a network."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medmamba.models.output_channels import OutputChannels


def dice(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    """``2 |A and B| / (|A| + |B|)`` of two masks of one shape; nan when both are empty.

    Source: Dice 1945. An absent structure that was rightly left out has no Dice, so it stays out of means.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"masks differ in shape: {truth.shape} and {prediction.shape}")
    total = int(truth.sum()) + int(prediction.sum())
    return 2 * int((truth & prediction).sum()) / total if total else math.nan


def dice_of_channels(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    heads: OutputChannels,
    annotated: Sequence[bool],
    channels: Sequence[int],
) -> dict[int, float]:
    """Dice of some channels from label indices (I, J, K), without ignored voxels; nan where one is not annotated."""
    known = np.ones(truth.shape, bool) if heads.ignore is None else truth != heads.ignore
    truth, prediction = truth[known], prediction[known]
    return {
        c: dice(np.isin(truth, heads.members[c]), np.isin(prediction, heads.members[c])) if annotated[c] else math.nan
        for c in channels
    }
