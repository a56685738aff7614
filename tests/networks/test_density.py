"""Key slices: the ones that stand for the others."""

from __future__ import annotations

import numpy as np
import pytest

from medmamba.errors import InputError
from medmamba.networks.density import automatic_bandwidth, density_peaks, key_tokens


def clusters() -> np.ndarray:
    """Five tokens around 0, three around 10, one beside them; the middle of each cluster is known."""
    return np.array([[-1.0], [-0.5], [0.0], [0.5], [1.0], [9.5], [10.0], [10.5], [14.0]])


def test_the_middle_of_each_cluster_comes_first() -> None:
    assert key_tokens(clusters(), 2).tolist() == [2, 6]


def test_density_counts_the_token_itself_and_falls_with_distance() -> None:
    tokens = np.array([[0.0], [1.0]])
    density, to_denser = density_peaks(tokens)
    np.testing.assert_allclose(density, 1 + np.exp(-1))
    np.testing.assert_allclose(to_denser, 1)  # both are densest: the largest distance
    assert key_tokens(tokens, 1).tolist() == [0]  # ties by index


def test_without_a_bandwidth_long_features_say_nothing() -> None:
    tokens = np.random.default_rng(0).normal(size=(12, 4096))
    np.testing.assert_allclose(density_peaks(tokens)[0], 1)
    assert density_peaks(tokens, automatic_bandwidth(tokens))[0].std() > 0.01


def test_one_token_is_its_own_key() -> None:
    assert key_tokens(np.zeros((1, 5)), 1).tolist() == [0]


def test_impossible_requests_are_named() -> None:
    with pytest.raises(InputError, match="Cannot choose 4 key slices out of 3; ask for 1 to 3"):
        key_tokens(np.zeros((3, 2)), 4)
    with pytest.raises(InputError, match=r"got shape \(3,\)"):
        density_peaks(np.zeros(3))
