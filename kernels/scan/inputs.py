"""The inputs of the selective scan, in the order in which every backend takes them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """Arguments of `medmamba.kernels.routed_scan`, checked and converted: float32, or float64 where that was given.

    A backend that reads half precision gets x, dt, B and C as they were given. A backend returns y and the last state.
    """

    x: Tensor
    """(batch, L, channels), or (batch, L, K, channels)."""
    dt: Tensor
    """(batch, L, K, channels)."""
    A: Tensor
    """(K, channels, N)."""
    B: Tensor
    """(batch, L, K, N)."""
    C: Tensor
    """(batch, L, K, N)."""
    D: Tensor | None
    """(K, channels)."""
    dt_bias: Tensor | None
    """(K, channels)."""
    routes: Tensor | None
    """int32 (K, L): the positions in the order of the visits; the backend checks that they are permutations."""
    initial_state: Tensor | None
    """(batch, K, channels, N)."""
    z: Tensor | None
    """Shape of y."""
    segments: Tensor | None
    """int32 (batch, L)."""
    softplus: bool
    merge: bool
