"""Mamba-3's scan, `mamba3_scan`, on the scans of Mamba-1 and Mamba-2.

Per head, with state S (p, n), rotation R of pairs of its n components, and ranks r of inputs and outputs::

    S_t = exp(a_t) R_t^T (S_{t-1} + (1 - m_t) dt_t sum_r x_{t-1,r} B_{t-1,r}^T) + m_t dt_t sum_r x_{t,r} B_{t,r}^T
    y_{t,r} = S_t C_{t,r} + D x_{t,r}

Two substitutions turn this into an ordinary scan. Seen from a frame that turns with the state, B and C are turned by
the sum of all angles so far and the state only decays. And what position s adds at its own time, m_s dt_s, and one step
later, (1 - m_{s+1}) dt_{s+1}, decays from then on together: every later position sees it with their sum, and s itself
with the first part alone, which a correction of the diagonal takes care of. Ranks become positions without decay
between them, and the same correction adds what a rank does not see of those after it.

What is left runs as matrix products of state-space duality (torch operations, Triton), or, with one rank, in the C++
kernel of the selective scan, whose heads are routes; there the step is minus the log decay, so the input is divided by
it. Where a decay is far below its step (1e-4 of it), that costs the gradient of the decay digits.
"""

import math

import torch
from torch import Tensor

from medmamba.kernels.arguments import check_kinds, check_shapes
from medmamba.kernels.availability import why_not_cpp
from medmamba.kernels.mamba3.reference import mamba3_reference, turned
from medmamba.kernels.scan.api import routed_scan
from medmamba.kernels.state_space_duality.api import ssd_chunked

LEAST_STEP = 1e-30
"""For the C++ kernel, which divides by minus the log decay: a state that does not decay at all."""


def mamba3_scan(
    x: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    decay: Tensor,
    mix: Tensor,
    turn: Tensor,
    D: Tensor | None = None,
    *,
    chunk: int = 64,
    backend: str = "auto",
) -> Tensor:
    """Scan of Mamba-3: exponential-trapezoidal steps, a state that turns, several inputs and outputs (MIMO).

    Arguments:
        x: (batch, L, heads, ranks, p).
        B, C: (batch, L, heads, ranks, n).
        dt: (batch, L, heads), positive step sizes.
        decay: (batch, L, heads), log decay: dt times a negative number.
        mix: (batch, L, heads), in [0, 1]: the weight of the end of each step; 1 is Mamba-2's step.
        turn: (batch, L, heads, m), by how many radians a step turns each of the first m pairs of components of the
            state; m is at most n / 2, and 0 leaves it unturned.
        D: (heads,) or None.
        chunk: positions per chunk of torch operations.
        backend: "auto", "cpp" (one rank), "triton", "torch" or "reference" (a loop).

    Returns y, (batch, L, heads, ranks, p), in float32 (float64 for float64 inputs).
    Source: Lahoti et al. 2026, arXiv:2603.15569, propositions on discretisation, rotation and MIMO.
    """
    named = {"x": x, "B": B, "C": C, "dt": dt, "decay": decay, "mix": mix, "turn": turn, "D": D}
    check_kinds(named)
    if x.dim() != 5 or B.dim() != 5 or turn.dim() != 4 or 0 in x.shape:
        raise ValueError(
            "x must be (batch, L, heads, ranks, p) without a 0, B (batch, L, heads, ranks, n) and turn (batch, L, "
            f"heads, m); they are {tuple(x.shape)}, {tuple(B.shape)} and {tuple(turn.shape)}."
        )
    sizes = dict(zip(("batch", "L", "heads", "ranks", "p", "n"), (*x.shape, B.shape[-1]), strict=True))
    each = dict.fromkeys(("B", "C"), "(batch, L, heads, ranks, n)")
    each |= dict.fromkeys(("dt", "decay", "mix"), "(batch, L, heads)")
    check_shapes(named, each | {"turn": "(batch, L, heads, m)", "D": "(heads)"}, sizes | {"m": turn.shape[-1]})
    if 2 * turn.shape[-1] > B.shape[-1]:
        raise ValueError(f"turn has {turn.shape[-1]} angles, which turn more than the n = {B.shape[-1]} of B and C.")
    kind = torch.float64 if any(v is not None and v.dtype == torch.float64 for v in named.values()) else torch.float32
    if backend == "auto" and x.shape[3] == 1 and why_not_cpp(x.device.type, kind) is None:
        backend = "cpp"
    if backend == "cpp" and x.shape[3] > 1:
        raise ValueError(f'backend "cpp" scans one rank, x has {x.shape[3]}: use "torch".')
    with torch.autocast(x.device.type, enabled=False):
        x, B, C, dt, decay, mix, turn = (value.to(kind) for value in (x, B, C, dt, decay, mix, turn))
        if backend == "reference":
            y = mamba3_reference(x, B, C, dt, decay, mix, turn)
        else:
            y = _by_a_scan(x, B, C, dt, decay, mix, turn, chunk, backend)
        return y if D is None else y + D.to(kind)[:, None, None] * x


def _by_a_scan(
    x: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    decay: Tensor,
    mix: Tensor,
    turn: Tensor,
    chunk: int,
    backend: str,
) -> Tensor:
    ranks = x.shape[3]
    # Angles add up over the whole sequence: in float64, and reduced before they become float32 again.
    angle = (turn.double().cumsum(1) % (2 * math.pi)).to(turn.dtype).unsqueeze(-2)
    B, C = turned(B, angle), turned(C, angle)
    now = mix * dt  # (batch, L, heads), what a position adds at its own time
    next_step = ((1 - mix) * dt)[:, 1:]
    later = now + torch.cat([next_step, torch.zeros_like(dt[:, :1])], 1)  # and for all that follow
    inputs = x * later[..., None, None]
    if backend == "cpp":
        y = _selective(inputs[:, :, :, 0], B[:, :, :, 0], C[:, :, :, 0], decay).unsqueeze(3)
    else:
        y = _dual(inputs, B, C, decay, chunk, backend)
    seen = torch.ones(ranks, ranks, dtype=torch.bool, device=x.device).tril()  # rank i has seen rank j
    weight = now[..., None, None] - later[..., None, None] * seen
    return y + (weight * (C @ B.transpose(-1, -2))) @ x


def _selective(inputs: Tensor, B: Tensor, C: Tensor, decay: Tensor) -> Tensor:
    """The scan of (batch, L, heads, p) as a selective scan with a route per head, whose step is minus the log decay."""
    step = (-decay).clamp(min=LEAST_STEP).unsqueeze(-1)
    A = inputs.new_full((inputs.shape[2], inputs.shape[3], B.shape[-1]), -1.0)
    y = routed_scan(
        inputs / step, step.expand_as(inputs), A, B, C, None, None, softplus=False, merge=False, backend="cpp"
    )
    assert isinstance(y, Tensor)
    return y


def _dual(inputs: Tensor, B: Tensor, C: Tensor, decay: Tensor, chunk: int, backend: str) -> Tensor:
    """The scan of (batch, L, heads, ranks, p) by duality, ranks as positions without decay between them."""
    batch, length, heads, ranks, _ = inputs.shape
    steps = torch.cat([decay.unsqueeze(2), decay.new_zeros(batch, length, ranks - 1, heads)], 2).flatten(1, 2)
    inputs, B, C = (value.transpose(2, 3).flatten(1, 2) for value in (inputs, B, C))
    y = ssd_chunked(inputs, steps, B, C, chunk=chunk, backend=backend)
    assert isinstance(y, Tensor)
    return y.unflatten(1, (length, ranks)).transpose(2, 3)
