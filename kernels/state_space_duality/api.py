"""State-space duality: the scan of Mamba-2, in chunks of matrix products.

One decay per head and position instead of one per channel and state turns the scan inside a chunk into a product like
attention's, which is what matrix units and BLAS are good at (Dao and Gu 2024, arXiv:2405.21060, sections 6 and 7)::

    S_l = exp(A_l) S_{l-1} + X_l B_l^T          S is (p, n) per head
    Y_l = S_l C_l

Decays between two positions are exponentials of sums over the positions between them, formed as cumulative sums that
start at each position (never as a difference of two long ones), so nothing cancels, overflows or becomes NaN however
strong the decay. The torch operations are plain and differentiable: second derivatives, torch.compile and export need
nothing special.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from medmamba.kernels.arguments import check_kinds, check_shapes
from medmamba.kernels.availability import why_not_triton
from medmamba.kernels.backends import Backend, chooser

# Chunks whose states are passed on together; more than this many chunks are passed on in two levels.
CHUNKS_PER_BLOCK = 64

Run = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]


def ssd_reference(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None = None, chunk: int = 1
) -> tuple[Tensor, Tensor]:
    """Y and the last state by a plain loop over time, the truth that the others are compared with; no chunks here."""
    batch, length, heads, width = X.shape
    per_group = heads // B.shape[2]
    B, C = (value.repeat_interleave(per_group, 2) for value in (B, C))
    state = X.new_zeros(batch, heads, width, B.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for step in range(length):
        state = torch.exp(A[:, step])[..., None, None] * state + X[:, step].unsqueeze(-1) * B[:, step].unsqueeze(-2)
        outputs.append((state @ C[:, step].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1), state


def ssd_torch(
    X: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """Y and the last state."""
    batch, length, heads, width = X.shape
    groups, n = B.shape[2:]
    per_group = heads // groups
    missing = -length % chunk  # zeros at the end change nothing before them: decay 1, input 0
    if missing:
        X, B, C = (pad(value, (0, 0, 0, 0, 0, missing)) for value in (X, B, C))
        A = pad(A, (0, 0, 0, missing))
    # c = chunk, q, s = position in the chunk, g = group, r = head in the group
    X = X.reshape(batch, -1, chunk, groups, per_group, width).permute(0, 1, 3, 4, 2, 5)  # (b, c, g, r, q, p)
    A = A.reshape(batch, -1, chunk, groups, per_group).permute(0, 1, 3, 4, 2)  # (b, c, g, r, q)
    B = B.reshape(batch, -1, chunk, groups, n).transpose(2, 3)  # (b, c, g, q, n)
    C = C.reshape(batch, -1, chunk, groups, n).transpose(2, 3)

    between = torch.exp(sums_between(A))  # (b, c, g, r, q, q), decay from position s to position q
    scores = (C @ B.transpose(-1, -2)).unsqueeze(3)  # (b, c, g, 1, q, s)
    Y = (scores * between) @ X

    from_start = A.cumsum(-1)  # (b, c, g, r, q)
    to_end = between[..., -1, :]  # (b, c, g, r, s)
    local = (X * to_end.unsqueeze(-1)).transpose(-1, -2) @ B.unsqueeze(3)  # (b, c, g, r, p, n)
    if initial_state is None:
        initial_state = X.new_zeros(batch, heads, width, n)
    first = initial_state.reshape(batch, groups, per_group, width, n)
    before, last = pass_states(local, from_start[..., -1], first)
    Y = Y + (C.unsqueeze(3) @ before.transpose(-1, -2)) * torch.exp(from_start).unsqueeze(-1)

    Y = Y.permute(0, 1, 4, 2, 3, 5).reshape(batch, length + missing, heads, width)
    return Y[:, :length], last.reshape(batch, heads, width, n)


def sums_between(A: Tensor) -> Tensor:
    """For A (..., q) the sums A[s+1] + ... + A[i] as (..., i, s); 0 on the diagonal, -inf above it."""
    q = A.shape[-1]
    lower = torch.ones(q, q, dtype=torch.bool, device=A.device).tril(-1)
    steps = A.unsqueeze(-1).expand(*A.shape, q).masked_fill(~lower, 0)  # (..., i, s) holds A[i] where i > s
    return steps.cumsum(-2).masked_fill(lower.T, -torch.inf)


def pass_states(local: Tensor, decay: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk and after the last.

    local: (b, c, ..., p, n), what each chunk adds; decay: (b, c, ...), its log decay; first: (b, ..., p, n).
    """
    chunks = local.shape[1]
    if chunks <= CHUNKS_PER_BLOCK:
        decay = pad(decay.movedim(1, -1), (1, 0))  # (b, ..., c + 1)
        every = torch.cat([first.unsqueeze(1), local], 1).movedim(1, -3)  # (b, ..., c + 1, p, n)
        weights = torch.exp(sums_between(decay))  # (b, ..., c + 1, c + 1)
        states = (weights @ every.flatten(-2)).unflatten(-1, every.shape[-2:]).movedim(-3, 1)
        return states[:, :-1], states[:, -1]
    missing = -chunks % CHUNKS_PER_BLOCK
    if missing:
        local = torch.cat([local, local.new_zeros(local.shape[0], missing, *local.shape[2:])], 1)
        decay = torch.cat([decay, decay.new_zeros(decay.shape[0], missing, *decay.shape[2:])], 1)
    local, decay = (value.unflatten(1, (-1, CHUNKS_PER_BLOCK)) for value in (local, decay))
    batch, blocks = local.shape[:2]
    nothing = local.new_zeros(batch * blocks, *first.shape[1:])
    inside, added = pass_states(local.flatten(0, 1), decay.flatten(0, 1), nothing)
    entering, last = pass_states(added.unflatten(0, (batch, blocks)), decay.sum(2), first)
    decay = pad(decay.movedim(2, -1), (1, -1)).cumsum(-1).movedim(-1, 2)  # from the block's start
    carried = entering.unsqueeze(2) * torch.exp(decay)[..., None, None]
    before = inside.unflatten(0, (batch, blocks)) + carried
    return before.flatten(1, 2)[:, :chunks], last


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
