"""Lesion-wise detection: connected components of the truth that were found, and false ones of the prediction."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Lesions:
    """Numbers of connected components (touching by face, edge or corner).

    A lesion of the truth is found when the prediction has a voxel of it; a predicted one is false when no voxel of it
    is in the truth.
    """

    in_truth: int
    found: int
    in_prediction: int
    false: int
    sizes: tuple[tuple[int, bool], ...] = ()
    """Voxels of every true lesion, and whether it was found."""

    @property
    def sensitivity(self) -> float:
        """Fraction of the true lesions that were found; nan if there is none."""
        return self.found / self.in_truth if self.in_truth else math.nan

    @property
    def precision(self) -> float:
        """Fraction of the predicted lesions that are real; nan if none was predicted."""
        return (self.in_prediction - self.false) / self.in_prediction if self.in_prediction else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision; 0 if one side is empty, nan if both are."""
        if not self.found:
            return 0.0 if self.in_truth or self.in_prediction else math.nan
        return 2 / (1 / self.sensitivity + 1 / self.precision)


def count_lesions(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> Lesions:
    """Connected components of two masks of one shape and how they meet."""
    from scipy.ndimage import label

    touching = np.ones((3,) * truth.ndim, dtype=bool)
    true, in_truth = label(truth, touching)
    predicted, in_prediction = label(prediction, touching)
    both = truth & prediction
    sizes = np.bincount(true.ravel(), minlength=in_truth + 1)[1:].tolist()
    hit = np.isin(np.arange(1, in_truth + 1), true[both]).tolist()
    false = int(in_prediction) - np.unique(predicted[both]).size
    return Lesions(int(in_truth), sum(hit), int(in_prediction), false, tuple(zip(sizes, hit, strict=True)))
