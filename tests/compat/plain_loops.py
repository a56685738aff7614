"""The operators written as loops over positions in float64, from their definitions, without medmamba's kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus


def per_channel(value: Tensor, channels: int, length: int, pairs: bool) -> Tensor:
    """B or C of any form as (batch or 1, channels, N, L)."""
    if value.dim() == 2:
        return value[None, :, :, None].expand(1, -1, -1, length)
    value = value if value.dim() == 4 else value.unsqueeze(1)
    if pairs:
        value = torch.complex(value[..., 0::2], value[..., 1::2])
    return value.repeat_interleave(channels // value.shape[1], 1)


def scan_loop(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """y and the last state of a selective scan, also for complex A."""
    channels, length = u.shape[1:]
    step = delta if delta_bias is None else delta + delta_bias[:, None]
    step = softplus(step) if delta_softplus else step
    B, C = (per_channel(value, channels, length, A.is_complex()) for value in (B, C))
    state, outputs = 0, []
    for t in range(length):
        s = step[:, :, t, None]
        state = torch.exp(s * A) * state + s * u[:, :, t, None] * B[..., t]
        y = (state * C[..., t]).sum(-1)
        outputs.append(2 * y.real if A.is_complex() else y)
    y = torch.stack(outputs, -1)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * silu(z)), state


def convolution_loop(x, weight, bias=None, before=None, activation=None, samples=None):
    """Causal depthwise convolution, tap by tap and position by position."""
    width = weight.shape[1]
    before = x.new_zeros(*x.shape[:2], width - 1) if before is None else before
    whole = torch.cat([before, x], -1)
    outputs = []
    for t in range(x.shape[-1]):
        y = torch.zeros_like(x[..., 0])
        for tap in range(width):
            place = t + tap - (width - 1)
            term = weight[:, tap] * whole[..., place + width - 1]
            if samples is not None:
                same = samples[:, t] == (samples[:, place] if place >= 0 else torch.full_like(samples[:, 0], -1))
                term = term * (same & (samples[:, t] >= 0))[:, None]
            y = y + term
        y = y if bias is None else y + bias
        y = silu(y) if activation else y
        if samples is not None:
            y = y * (samples[:, t] >= 0)[:, None]
        outputs.append(y)
    return torch.stack(outputs, -1)


def mamba2_loop(x, dt, A, B, C, D=None, z=None, dt_bias=None, initial=None, samples=None, softplus_dt=False):
    """y and the last state of Mamba-2's scan."""
    batch, length, heads, width = x.shape
    step = dt if dt_bias is None else dt + dt_bias
    step = softplus(step) if softplus_dt else step
    B, C = (value.repeat_interleave(heads // value.shape[2], 2) for value in (B, C))
    state = x.new_zeros(batch, heads, width, B.shape[-1]) if initial is None else initial
    outputs = []
    for t in range(length):
        if samples is not None:
            old = samples[:, t - 1] if t else torch.zeros_like(samples[:, 0])
            state = state * (samples[:, t] == old)[:, None, None, None]
        s = step[:, t, :, None, None]
        state = torch.exp(s * A[:, None, None]) * state + s * x[:, t].unsqueeze(-1) * B[:, t].unsqueeze(-2)
        y = (state * C[:, t].unsqueeze(-2)).sum(-1)
        if D is not None:
            y = y + x[:, t] * (D[:, None] if D.dim() == 1 else D)
        outputs.append(y)
    y = torch.stack(outputs, 1)
    return (y if z is None else y * silu(z)), state


def gradients_of(outputs, leaves) -> list[Tensor]:
    """The gradients of a fixed random combination of real outputs."""
    generator = torch.Generator().manual_seed(5)
    loss = 0
    for y in outputs if isinstance(outputs, tuple) else (outputs,):
        y = torch.view_as_real(y) if y.is_complex() else y
        loss = loss + (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum()
    return torch.autograd.grad(loss, leaves, retain_graph=True)


def close(found, wanted, tolerance: float) -> None:
    """Every tensor within a tolerance of the largest value of the wanted one."""
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one.shape == other.shape, index
        one, other = (torch.view_as_real(value) if value.is_complex() else value for value in (one, other))
        size = other.double().abs().max().clamp(min=1e-3)
        assert (one.double() - other.double()).abs().max() <= tolerance * size, index
