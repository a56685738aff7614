"""mamba_ssm's Mamba-2 scans (mamba_ssm.ops.triton.ssd_combined) on medmamba's state-space duality."""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu, softplus

from medmamba.compat.causal_convolution import causal_conv1d_fn
from medmamba.compat.gated_norms import rmsnorm_fn
from medmamba.compat.usage import used
from medmamba.kernels import ssd_chunked
from medmamba.kernels.arguments import check_kinds, check_shapes

NO_LIMIT = (0.0, float("inf"))
MEMORY_CHUNK = 64
"""Positions per chunk of torch's operations, whose tables grow with its square; the caller's chunk only if shorter."""
RESET = -1e30
"""Log decay where a sample begins: its exponential is zero, and sums of a few stay finite."""


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
    *,
    backend: str = "auto",
) -> Any:
    """The scan of Mamba-2: (batch, L, heads, p) in the dtype of x.

    Arguments:
        x, z: (batch, L, heads, p); dt: (batch, L, heads); A, dt_bias: (heads,); D: (heads,) or (heads, p).
        B, C: (batch, L, groups, n).
        chunk_size: has no influence on the result.
        initial_states: (batch, heads, p, n), the state before a first sample whose number is 0.
        seq_idx: (batch, L), the sample of each position; where it changes the state is set to zero.
        cu_seqlens: (samples + 1,), the bounds of the samples of a batch of one, for `return_varlen_states`.
        state_dtype: ignored, states are float32 (float64 for float64 inputs).

    Returns y, and if asked for the states after the last position and after each sample.
    """
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    check_kinds(named | {"initial_states": initial_states}, {"seq_idx": seq_idx, "cu_seqlens": cu_seqlens})
    if x.dim() != 4 or B.dim() != 4:
        raise ValueError(
            f"x must be (batch, L, heads, p) and B (batch, L, groups, n); they are {tuple(x.shape)} and "
            f"{tuple(B.shape)}."
        )
    sizes = dict(zip(("batch", "L", "heads", "p"), x.shape, strict=True))
    axes = {"dt": "(batch, L, heads)", "A": "(heads)", "dt_bias": "(heads)", "z": "(batch, L, heads, p)"}
    axes |= {"seq_idx": "(batch, L)", "D": "(heads)" if D is None or D.dim() == 1 else "(heads, p)"}
    check_shapes(named | {"seq_idx": seq_idx}, axes, sizes)
    if return_varlen_states and (cu_seqlens is None or x.shape[0] != 1):
        raise ValueError("return_varlen_states needs cu_seqlens and a batch of one.")
    kind = torch.float64 if any(v is not None and v.dtype == torch.float64 for v in named.values()) else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        step = dt.to(kind) if dt_bias is None else dt.to(kind) + dt_bias.to(kind)
        step = softplus(step) if dt_softplus else step
        step = step if dt_limit == NO_LIMIT else step.clamp(*dt_limit)
        decay = step * A.to(kind)
        wide = x.to(kind)
        if seq_idx is not None:
            decay = decay.masked_fill(_sample_starts(seq_idx, initial_states is not None).unsqueeze(-1), RESET)
            backend = "torch" if backend == "auto" else backend  # the Triton kernels subtract long sums
        chosen = backend if backend != "auto" or x.device.type == "cuda" else "torch"
        used("mamba_chunk_scan_combined", f"{'Triton' if chosen == 'auto' else chosen} on {x.device.type}")
        options: dict[str, Any] = {"chunk": max(1, min(chunk_size, MEMORY_CHUNK)), "backend": backend}
        inputs = (wide * step.unsqueeze(-1), decay, B.to(kind), C.to(kind))
        y, final = ssd_chunked(*inputs, initial_state=initial_states, return_last_state=True, **options)
        y = y.to(kind)
        if D is not None:
            y = y + wide * (D.to(kind).unsqueeze(-1) if D.dim() == 1 else D.to(kind))
        if z is not None:
            y = y * silu(z.to(kind))
    results = [y.to(x.dtype)]
    if return_final_states:
        results.append(final)
    if return_varlen_states and cu_seqlens is not None:
        bounds = cu_seqlens.tolist()
        ends = [
            ssd_chunked(*(value[:, start:end] for value in inputs), return_last_state=True, **options)[1]
            for start, end in itertools.pairwise(bounds)
        ]
        results.append(torch.cat(ends))
    return results[0] if len(results) == 1 else tuple(results)


def _sample_starts(seq_idx: Tensor, has_initial: bool) -> Tensor:
    """Whether the state is reset before each position; an initial state belongs to sample 0."""
    changed = seq_idx[:, 1:] != seq_idx[:, :-1]
    first = (seq_idx[:, :1] != 0) if has_initial else torch.zeros_like(seq_idx[:, :1], dtype=torch.bool)
    return torch.cat([first, changed], 1)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Any:
    """A Mamba-2 block without its first projection.

    zxbcdt (batch, L, 2 d_mlp + 2 dim + 2 groups n + heads) holds the gated MLP's halves, z, x, B, C and dt in this
    order; convolution, scan, gated norm (or gate) and, if given, the last projection follow. D is (heads,) with
    `headdim`, or (heads, headdim). Returns (batch, L, width), and if asked for the final states.
    """
    if D.dim() == 1 and headdim is None:
        raise ValueError("headdim must be given where D is (heads,).")
    heads, headdim = D.shape[0], headdim if D.dim() == 1 else D.shape[1]
    assert headdim is not None
    inner = heads * headdim
    n = (conv1d_weight.shape[0] - inner) // (2 * ngroups)
    mlp = (zxbcdt.shape[-1] - 2 * inner - 2 * ngroups * n - heads) // 2
    sizes = [2 * mlp, inner, inner + 2 * ngroups * n, heads]
    if n < 1 or mlp < 0 or sum(sizes) != zxbcdt.shape[-1] or conv1d_weight.shape[0] != sizes[2]:
        raise ValueError(
            f"zxbcdt has {zxbcdt.shape[-1]} channels and conv1d_weight {conv1d_weight.shape[0]}, which do not fit "
            f"{heads} heads of {headdim} and {ngroups} groups."
        )
    beside, z, xBC, dt = zxbcdt.split(sizes, -1)
    xBC = causal_conv1d_fn(
        xBC.transpose(1, 2), conv1d_weight, conv1d_bias, seq_idx=seq_idx, activation=activation
    ).transpose(1, 2)
    x, B, C = xBC.split([inner, ngroups * n, ngroups * n], -1)
    found = mamba_chunk_scan_combined(
        x.unflatten(-1, (heads, headdim)),
        dt,
        A,
        B.unflatten(-1, (ngroups, n)),
        C.unflatten(-1, (ngroups, n)),
        chunk_size,
        D=D,
        z=z.unflatten(-1, (heads, headdim)) if rmsnorm_weight is None else None,
        dt_bias=dt_bias,
        initial_states=initial_states,
        seq_idx=seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=return_final_states,
    )
    y, *final = found if return_final_states else (found,)
    y = y.flatten(-2)
    if rmsnorm_weight is not None:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, inner // ngroups, norm_before_gate)
    if mlp:
        gate, value = beside.chunk(2, -1)
        y = torch.cat([silu(gate) * value, y], -1)
    if outproj_weight is not None:
        y = linear(y, outproj_weight, outproj_bias)
    return (y, *final) if return_final_states else y
