"""The scan of Mamba-2 as a plain loop over time: the truth that every backend is compared with.

S_l = exp(A_l) S_{l-1} + X_l B_l^T,   Y_l = S_l C_l
"""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_reference(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None = None, chunk: int = 1
) -> tuple[Tensor, Tensor]:
    """Y and the last state; `chunk` has no meaning here."""
    batch, length, heads, width = X.shape
    per_group = heads // B.shape[2]
    B, C = (value.repeat_interleave(per_group, 2) for value in (B, C))
    state = X.new_zeros(batch, heads, width, B.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for step in range(length):
        state = torch.exp(A[:, step])[..., None, None] * state + X[:, step].unsqueeze(-1) * B[:, step].unsqueeze(-2)
        outputs.append((state @ C[:, step].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1), state
