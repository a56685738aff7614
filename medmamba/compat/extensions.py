"""The compiled extensions selective_scan_cuda, _core and _oflex: fwd and bwd with their argument orders.

Code of repositories calls them inside its own autograd functions. bwd scans again and lets autograd differentiate, so
`x`, in which the originals keep states for it, holds the last state only: (batch, D, chunks of 2048, 2 N), the states
at the odd places of the last chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from medmamba.compat.selective_scan import selective_scan_fn

CHUNK = 2048


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The output before the gate, and x."""
    delta, delta_bias = _per_channel(u, delta, delta_bias)
    with torch.no_grad():
        out, last = selective_scan_fn(u, delta, A, B, C, D, None, delta_bias, delta_softplus, True)
    chunks = -(-u.shape[-1] // CHUNK)
    states = last.new_zeros(*last.shape[:2], chunks, 2 * last.shape[-1])
    states[:, :, -1, 1::2] = last
    return out, states


def _per_channel(u: Tensor, delta: Tensor, delta_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Step sizes that several channels share, as VMamba's kernel takes them, one per channel."""
    if delta.shape[1] == 0 or u.shape[1] % delta.shape[1]:
        raise ValueError(f"delta has {delta.shape[1]} channels, which do not divide the {u.shape[1]} of u.")
    repeat = u.shape[1] // delta.shape[1]
    if repeat == 1:
        return delta, delta_bias
    bias = None if delta_bias is None else delta_bias.repeat_interleave(repeat)
    return delta.repeat_interleave(repeat, 1), bias


def _backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    delta_softplus: bool,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D, delta_bias and z; None for what is not given."""
    given = [u, delta, A, B, C, D, delta_bias, z]
    with torch.enable_grad():
        leaves = [None if value is None else value.detach().requires_grad_() for value in given]
        u, delta, A, B, C = leaves[:5]  # type: ignore[assignment]
        steps, bias = _per_channel(u, delta, leaves[6])
        out = selective_scan_fn(u, steps, A, B, C, leaves[5], leaves[7], bias, delta_softplus)
        found = iter(torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], dout.to(out.dtype)))
    return [None if leaf is None else next(found) for leaf in leaves]


def mamba_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """selective_scan_cuda.fwd: the output before the gate, x, and with z the output after it."""
    out, states = _forward(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return [out, states] if z is None else [out, states, (out.float() * silu(z.float())).to(out.dtype)]


def mamba_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """selective_scan_cuda.bwd: the gradients of u, delta, A, B, C, D, delta_bias, of z if given (into dz, if that is
    given), and if asked for the gated output."""
    *gradients, gate = _backward(u, delta, A, B, C, D, z, delta_bias, dout, delta_softplus)
    if z is None:
        return gradients
    if dz is not None and gate is not None:
        gate = dz.copy_(gate)
    gated = mamba_fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)[2] if recompute_out_z else None
    return [*gradients, gate, *([gated] if gated is not None else [])]


def oflex_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
    out_float: bool,
) -> list[Tensor]:
    """selective_scan_cuda_oflex.fwd: the output, in float32 if asked for, and x."""
    wide = u if not out_float or u.dtype == torch.float64 else u.float()
    return list(_forward(wide, delta, A, B, C, D, delta_bias, delta_softplus))


def core_fwd(*arguments: Any) -> list[Tensor]:
    """selective_scan_cuda_core.fwd: the arguments of oflex without the last one, the output in the dtype of u."""
    u, delta, A, B, C, D, delta_bias, delta_softplus, _nrows = arguments
    return list(_forward(u, delta, A, B, C, D, delta_bias, delta_softplus))


def oflex_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor | None]:
    """selective_scan_cuda_oflex.bwd: the gradients of u, delta, A, B, C, D and delta_bias."""
    return _backward(u, delta, A, B, C, D, None, delta_bias, dout, delta_softplus)[:7]


core_bwd = oflex_bwd
