"""Intensity normalisation, one scheme per channel, as nnU-Net's plans name them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medmamba.plans.schema import Normalization

MIN_STD = 1e-8
"""Smallest divisor of a z-score; a constant image becomes zero instead of infinite."""


def normalize(
    channel: NDArray[np.floating], scheme: Normalization, inside: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """One channel on the plan's intensity scale.

    ``channel`` is (I, J, K) in the image's own units; ``inside`` marks the voxels of the body and is used where the
    scheme asks for it: statistics come from them and all others become zero. Source: nnU-Net v2,
    ``preprocessing/normalization/default_normalization_schemes.py``.
    """
    values = channel.astype(np.float32)
    match scheme.scheme:
        case "zscore":
            if scheme.use_mask and inside is not None and inside.any():
                result = np.zeros_like(values)
                result[inside] = _zscore(values[inside])
                return result
            return _zscore(values)
        case "ct":
            low, high, mean, std = (
                scheme.percentile_00_5,
                scheme.percentile_99_5,
                scheme.mean,
                scheme.std,
            )
            if low is None or high is None or mean is None or std is None:
                raise ValueError("CT normalisation needs the dataset's percentiles, mean and std in the plan")
            return (np.clip(values, low, high) - np.float32(mean)) / np.float32(max(std, MIN_STD))
        case "rescale_to_0_1":
            low, high = float(values.min()), float(values.max())
            return (values - np.float32(low)) / np.float32(max(high - low, MIN_STD))
        case "rgb_to_0_1":
            return values / np.float32(255)
        case "none":
            return values
    raise ValueError(f"unknown normalisation scheme {scheme.scheme!r}")


def _zscore(values: NDArray[np.float32]) -> NDArray[np.float32]:
    # float64 statistics: float32 sums lose digits on images with values near 1e6.
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return ((values - np.float32(mean)) / np.float32(max(std, MIN_STD))).astype(np.float32)
