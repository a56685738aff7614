"""Key slices by density peaks: the slices that represent a volume.

Source: Zhang et al. 2024, KMM (arXiv:2411.06481), which masks key frames of a motion; Rodriguez and Laio 2014, density
peaks (Science 344:1492). Here a token is a slice (or a patch), to mask in pretraining or to annotate first.

    D_ij = ||x_i - x_j||;  d_i = sum_j exp(-D_ij^2);  s_i = min over the denser j of D_ij;  gamma_i = d_i * s_i
"""

import numpy as np
from scipy.spatial.distance import cdist, pdist

from medmamba.errors import InputError

BANDWIDTH_PERCENTILE = 3.0  # of the pairwise distances; density peaks recommends 1 to 2 %, up to 5 % for few tokens
BANDWIDTH_FLOOR = 1e-6


def density_peaks(tokens: np.ndarray, bandwidth: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Density d and distance to a denser token s, arrays (n,), of ``tokens`` (n, features).

    d counts the token's own 1; s of the densest token is the largest distance of all. Distances are divided by
    ``bandwidth`` (None: as in the paper, see :func:`automatic_bandwidth`). Raises InputError for other tokens.
    """
    x = np.asarray(tokens, dtype=np.float64)
    if x.ndim != 2 or len(x) == 0 or not np.isfinite(x).all():
        raise InputError(f"Density peaks need finite tokens of shape (n, features), got shape {x.shape}.")
    distance = cdist(x, x) / (bandwidth or 1.0)
    density = np.exp(-(distance**2)).sum(1)
    denser = density[None, :] > density[:, None]
    nearest = np.where(denser, distance, np.inf).min(1)
    return density, np.where(denser.any(1), nearest, distance.max(1))


def automatic_bandwidth(tokens: np.ndarray) -> float:
    """A low percentile of the distances between different tokens; without it long ones have a density of 1 each."""
    pairs = pdist(np.asarray(tokens, dtype=np.float64))
    return max(float(np.percentile(pairs, BANDWIDTH_PERCENTILE)) if len(pairs) else 1.0, BANDWIDTH_FLOOR)


def key_tokens(tokens: np.ndarray, count: int, *, bandwidth: float | None = None) -> np.ndarray:
    """Indices (ascending) of the ``count`` tokens with the largest gamma (ties by index).

    Raises InputError if ``count`` is not between 1 and the number of tokens.
    """
    if not 1 <= count <= len(tokens):
        raise InputError(f"Cannot choose {count} key slices out of {len(tokens)}; ask for 1 to {len(tokens)}.")
    density, to_denser = density_peaks(tokens, bandwidth)
    return np.sort(np.argsort(-density * to_denser, kind="stable")[:count])
