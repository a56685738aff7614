"""State-space duality: the scan of Mamba-2, in chunks of matrix products.

One decay per head and position instead of one per channel and state turns the scan inside a chunk into a product like
attention's, which is what matrix units and BLAS are good at (Dao and Gu 2024, arXiv:2405.21060, sections 6 and 7)::

    S_l = exp(A_l) S_{l-1} + X_l B_l^T          S is (p, n) per head
    Y_l = S_l C_l
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medmamba.kernels.arguments import check_kinds, check_shapes
from medmamba.kernels.availability import why_not_triton
from medmamba.kernels.backends import Backend, chooser
from medmamba.kernels.state_space_duality.chunked import ssd_reference, ssd_torch

Run = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]


def _triton(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    from medmamba.kernels.state_space_duality.triton_launch import ssd_triton

    return ssd_triton(X, A, B, C, initial_state)  # the kernels have a chunk of their own


SSD_BACKENDS: dict[str, Backend[Run]] = {
    "cpp": Backend(ssd_torch, lambda device, dtype: 'ssd_chunked has no C++ kernel; "torch" uses BLAS on the CPU'),
    "triton": Backend(_triton, why_not_triton, reads_half=True),
    "torch": Backend(ssd_torch),
    "reference": Backend(ssd_reference),
}
"""Name -> backend: X, A, B, C, the initial state and the length of a chunk to Y and the last state."""
_choose_backend = chooser(SSD_BACKENDS)


def ssd_chunked(
    X: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk: int = 64,
    backend: str = "auto",
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Discrete scan of Mamba-2.

    Arguments:
        X: (batch, L, heads, p), already multiplied by the step size.
        A: (batch, L, heads), log decay: step size times the negative A of the head.
        B, C: (batch, L, groups, n); groups divides heads, and head h uses group h // (heads / groups).
        chunk: positions per chunk in torch operations; any L is accepted. The Triton kernels have their own.
        backend: "auto" (Triton on a device that has it, else torch), "triton", "torch" or "reference" (a loop).
        initial_state: (batch, heads, p, n) or None for zero.
        return_last_state: whether the state after the last position is returned as well.

    Returns Y, (batch, L, heads, p), in float32 (float64 for float64 inputs), and, if asked for, the last state.
    """
    _check(X, A, B, C, chunk, initial_state)
    dtype = torch.float64 if X.dtype == torch.float64 else torch.float32
    if backend == "auto" and X.device.type == "cpu":
        backend = "torch"  # which is no fallback here: the matrix products are BLAS's
    chosen = SSD_BACKENDS[_choose_backend(backend, X.device.type, dtype)]
    if not chosen.reads_half:
        X, A, B, C = (value.to(dtype) for value in (X, A, B, C))
        initial_state = None if initial_state is None else initial_state.to(dtype)
    with torch.autocast(X.device.type, enabled=False):
        Y, last_state = chosen.run(X, A, B, C, initial_state, chunk)
    return (Y, last_state) if return_last_state else Y


def _check(X: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, initial_state: Tensor | None) -> None:
    named = {"X": X, "A": A, "B": B, "C": C, "initial_state": initial_state}
    check_kinds(named)
    if X.dim() != 4 or 0 in X.shape:
        raise ValueError(f"X must be (batch, L, heads, p), none of them 0; it is {tuple(X.shape)}.")
    groups, n = B.shape[2:] if B.dim() == 4 else (0, 0)
    if 0 in (groups, n) or X.shape[2] % groups:
        raise ValueError(
            f"B must be (batch, L, groups, n) with groups dividing {X.shape[2]} heads, it is {tuple(B.shape)}."
        )
    sizes = dict(zip(("batch", "L", "heads", "p", "groups", "n"), (*X.shape, groups, n), strict=True))
    axes = {"A": "(batch, L, heads)", "B": "(batch, L, groups, n)", "C": "(batch, L, groups, n)"}
    check_shapes(named, axes | {"initial_state": "(batch, heads, p, n)"}, sizes)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, it is {chunk}.")
