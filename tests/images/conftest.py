"""A small volume."""

import numpy as np
import pytest


@pytest.fixture
def volume() -> np.ndarray:
    """float32 (6, 7, 5), all values different."""
    return np.random.default_rng(0).permutation(6 * 7 * 5).reshape(6, 7, 5).astype(np.float32) - 50
