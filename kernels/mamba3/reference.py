"""Mamba-3's recurrence by a plain loop over time, the truth that the other form is compared with."""

import torch
from torch import Tensor


def turned(value: Tensor, angle: Tensor) -> Tensor:
    """value (..., n) with the pairs of its first 2 m components turned by `angle` (..., m)."""
    pairs = angle.shape[-1]
    first, second = value[..., : 2 * pairs].unflatten(-1, (pairs, 2)).unbind(-1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    both = torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)
    return torch.cat([both, value[..., 2 * pairs :]], -1)


def mamba3_reference(
    x: Tensor, B: Tensor, C: Tensor, dt: Tensor, decay: Tensor, mix: Tensor, turn: Tensor, chunk: int = 1
) -> Tensor:
    """y of `mamba3_scan` without the skip, in the frame of the state itself: it is turned at every step."""
    batch, length, heads, _, width = x.shape
    state = x.new_zeros(batch, heads, width, B.shape[-1])
    before = torch.zeros_like(state)  # what the position before contributes
    outputs = []
    for t in range(length):
        alpha = torch.exp(decay[:, t])[..., None, None]
        step, share = dt[:, t, :, None, None], mix[:, t, :, None, None]
        new = x[:, t].transpose(-1, -2) @ B[:, t]  # (batch, heads, p, n), summed over the ranks
        back = -turn[:, t].unsqueeze(-2)
        state = alpha * turned(state + (1 - share) * step * before, back) + share * step * new
        before = new
        outputs.append(C[:, t] @ state.transpose(-1, -2))
    return torch.stack(outputs, 1)
