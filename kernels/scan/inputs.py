"""The inputs of the selective scan, in the order in which every backend takes them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """Arguments of `medmamba.kernels.routed_scan`, checked and converted: float32, or float64 where that was given.

    Shapes as there, in spatial order; integers are int32. That the rows of `routes` are permutations is for the backend
    to check. One that reads half precision gets x, dt, B and C as they were given.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    routes: Tensor | None
    initial_state: Tensor | None
    z: Tensor | None
    segments: Tensor | None
    softplus: bool
    merge: bool
