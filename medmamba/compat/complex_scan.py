"""The selective scan with complex A, as a plain loop: a form that mamba_ssm has and no network of the list uses."""

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

Scanned = Tensor | tuple[Tensor, Tensor]


def complex_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
) -> Scanned:
    """Scan whose output is twice the real part of C h, for states that stand for conjugate pairs.

    u, delta, z (batch, D, L) real; A (D, N) complex; B, C (D, N) complex, (batch, N, 2 L) or (batch, G, N, 2 L) real.
    """
    double = torch.float64 in (u.dtype, delta.dtype) or A.dtype == torch.complex128
    real, kind = (torch.float64, torch.complex128) if double else (torch.float32, torch.complex64)
    channels, length = u.shape[1:]
    dt = delta.to(real)
    if delta_bias is not None:
        dt = dt + delta_bias.to(real).unsqueeze(-1)
    if delta_softplus:
        dt = softplus(dt)
    x = u.to(real)
    steps_B, steps_C = (_steps(name, value, channels, length, kind) for name, value in (("B", B), ("C", C)))
    decay = torch.exp(dt.unsqueeze(-2) * A.to(kind).unsqueeze(-1)).unbind(-1)  # L of (batch, D, N)
    added = (dt * x).unsqueeze(-1).unbind(-2)
    state = decay[0].new_zeros(decay[0].shape)
    outputs = []
    for step in range(length):
        state = decay[step] * state + added[step] * steps_B[step]
        outputs.append(2 * (state * steps_C[step]).sum(-1).real)
    y = torch.stack(outputs, -1)
    if D is not None:
        y = y + x * D.to(real).unsqueeze(-1)
    if z is not None:
        y = y * silu(z.to(real))
    y = y.to(u.dtype)
    return (y, state) if return_last_state else y


def _steps(name: str, value: Tensor, channels: int, length: int, kind: torch.dtype) -> list[Tensor]:
    """B or C at every step, each of a shape that fits (batch, D, N)."""
    if value.dim() == 2:
        return [value.to(kind)] * length
    if value.dim() not in (3, 4) or value.shape[-1] != 2 * length or value.is_complex():
        raise ValueError(
            f"{name} must be (D, N), or real and (batch, N, 2 L) or (batch, G, N, 2 L) with L = {length} for complex "
            f"A; it is {value.dtype} {tuple(value.shape)}."
        )
    value = value.unsqueeze(1) if value.dim() == 3 else value
    if channels % value.shape[1]:
        raise ValueError(f"{value.shape[1]} groups of {name} do not divide D = {channels} channels.")
    pairs = value.to(torch.float64 if kind == torch.complex128 else torch.float32).unflatten(-1, (length, 2))
    numbers = torch.view_as_complex(pairs.contiguous())
    return list(numbers.repeat_interleave(channels // value.shape[1], 1).unbind(-1))
