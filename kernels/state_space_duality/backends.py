"""The backends of state-space duality, the preferred one first. On the CPU the matrix products are BLAS's.

Compiled code is imported at the first call of its backend.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medmamba.kernels.availability import why_not_triton
from medmamba.kernels.backends import Backend, choose_backend
from medmamba.kernels.compile_constant import compile_constant
from medmamba.kernels.state_space_duality.chunked import ssd_torch
from medmamba.kernels.state_space_duality.reference import ssd_reference


def _triton(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """`chunk` has no meaning here: the kernels have their own."""
    from medmamba.kernels.state_space_duality.triton_launch import ssd_triton

    return ssd_triton(X, A, B, C, initial_state)


def _no_cpp(device: str, dtype: torch.dtype) -> str:
    return 'ssd_chunked has no C++ kernel; "torch" uses BLAS on the CPU'


SSD_BACKENDS: dict[str, Backend[Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]]]
SSD_BACKENDS = {
    "cpp": Backend(ssd_torch, _no_cpp),
    "triton": Backend(_triton, why_not_triton, reads_half=True),
    "torch": Backend(ssd_torch),
    "reference": Backend(ssd_reference),
}
"""Name -> backend: X, A, B, C, the initial state and the length of a chunk to Y and the last state."""


@compile_constant
def choose_ssd_backend(name: str, device: str, dtype: torch.dtype) -> str:
    """The backend for tensors of this device type and precision; raises as `choose_backend` does."""
    if name == "auto" and device == "cpu":
        return "torch"  # which is no fallback here
    return choose_backend(SSD_BACKENDS, name, device, dtype)
