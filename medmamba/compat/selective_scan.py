"""mamba_ssm's selective scan and its fused Mamba-1 forward passes (mamba_ssm 1.1, 2.3; Vim's and SegMamba's forks)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from medmamba.compat.causal_convolution import causal_conv1d_fn
from medmamba.compat.complex_scan import complex_selective_scan
from medmamba.compat.norms import root_mean_square_norm
from medmamba.compat.usage import scan_backend, torch_on, used
from medmamba.kernels import routed_scan, selective_scan

Scanned = Any
"""The output, or the output and the last state."""


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str = "auto",
) -> Scanned:
    """The scan of a Mamba-1 block.

    Arguments:
        u, delta, z: (batch, D, L).
        A: (D, N), real or complex.
        B, C: (D, N), (batch, N, L) or (batch, G, N, L); with complex A the last axis holds 2 L real numbers, real and
            imaginary parts in turn, and B and C constant in time are complex.
        D, delta_bias: (D,).

    Returns the output in the dtype of u and, if asked for, the last state (batch, D, N), whose gradient counts.
    """
    if A.is_complex():
        used("selective_scan_fn", f"loop of {torch_on(u)}")
        return complex_selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    used("selective_scan_fn", scan_backend(u, delta, A, B, C, D, z, delta_bias))
    options = {"delta_softplus": delta_softplus, "return_last_state": return_last_state, "backend": backend}
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, **options)  # type: ignore[arg-type]


def selective_scan_ref(*arguments: Any, **options: Any) -> Scanned:
    """`selective_scan_fn` by the plain loop."""
    return selective_scan_fn(*arguments, **options, backend="reference")


def _inner(
    name: str,
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    decays: list[Tensor],
    B: Tensor | None,
    C: Tensor | None,
    D: Tensor | None,
    delta_bias: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    delta_softplus: bool,
    rms_weights: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    rms_eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """Convolution, projections and gated scan of xz (batch, 2 D, L): (batch, L, D).

    Of two `decays` (matrices A) the second belongs to a scan from the end to the start.
    """
    A = decays[0]
    rank = delta_proj_weight.shape[1]
    width = A.shape[-1] * (2 if A.is_complex() else 1)
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu").transpose(1, 2)
    z = z.transpose(1, 2)
    projected = linear(x, x_proj_weight)  # (batch, L, rank + 2 N)
    delta = linear(projected[..., :rank], delta_proj_weight)
    variable_B = projected[..., rank : rank + width] if B is None else None
    variable_C = projected[..., -width:] if C is None else None
    if variable_B is not None and B_proj_bias is not None:
        variable_B = variable_B + B_proj_bias.to(variable_B.dtype)
    if variable_C is not None and C_proj_bias is not None:
        variable_C = variable_C + C_proj_bias.to(variable_C.dtype)
    normed = [
        value if weight is None or value is None else root_mean_square_norm(value, weight, rms_eps)
        for value, weight in zip((variable_B, variable_C, delta), rms_weights, strict=True)
    ]
    variable_B, variable_C, delta = normed  # type: ignore[assignment]
    given = (D, delta_bias, z, delta_softplus, backend)
    if variable_B is not None and variable_C is not None and not A.is_complex():
        used(name, scan_backend(x, delta, A, D, delta_bias))
        return _scan_along_routes(x, delta, decays, variable_B, variable_C, *given).to(xz.dtype)
    used(name, "selective_scan_fn")
    B = _along_time(variable_B, A) if variable_B is not None else B
    C = _along_time(variable_C, A) if variable_C is not None else C
    assert B is not None
    assert C is not None
    return _scan_by_function(x, delta, decays, B, C, *given)


def _scan_along_routes(
    x: Tensor,
    delta: Tensor,
    decays: list[Tensor],
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor,
    delta_softplus: bool,
    backend: str,
) -> Tensor:
    """The gated scans, one call for both directions, of tensors that are channels last."""
    count, routes = len(decays), None
    if count > 1:
        forwards = torch.arange(x.shape[1], device=x.device)
        routes = torch.stack([forwards, forwards.flip(0)])
    delta, B, C = (value.unsqueeze(2).expand(-1, -1, count, -1) for value in (delta, B, C))
    D, delta_bias = (None if value is None else value.expand(count, -1) for value in (D, delta_bias))
    options: dict[str, Any] = {"softplus": delta_softplus, "z": z, "backend": backend}
    y = routed_scan(x, delta, torch.stack(decays), B, C, D, delta_bias, routes, **options)
    assert isinstance(y, Tensor)
    return y


def _along_time(value: Tensor, A: Tensor) -> Tensor:
    """(batch, L, N), or (batch, L, 2 N) of complex numbers, as (batch, N, L) or (batch, N, 2 L)."""
    if A.is_complex():
        return value.unflatten(-1, (-1, 2)).transpose(1, 2).flatten(-2)
    return value.transpose(1, 2)


def _reversed(value: Tensor, A: Tensor) -> Tensor:
    """B or C from the end to the start; what is constant in time stays."""
    if value.dim() < 3:
        return value
    return value.unflatten(-1, (-1, 2)).flip(-2).flatten(-2) if A.is_complex() else value.flip(-1)


def _scan_by_function(
    x: Tensor,
    delta: Tensor,
    decays: list[Tensor],
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor,
    delta_softplus: bool,
    backend: str,
) -> Tensor:
    """The same for B and C of any form and complex A."""
    x, delta, z = (value.transpose(1, 2) for value in (x, delta, z))
    y = selective_scan_fn(x, delta, decays[0], B, C, D, z, delta_bias, delta_softplus, backend=backend)
    for A in decays[1:]:
        x, delta, z = (value.flip(-1) for value in (x, delta, z))
        B, C = _reversed(B, A), _reversed(C, A)
        back = selective_scan_fn(x, delta, A, B, C, D, z, delta_bias, delta_softplus, backend=backend)
        y = y + back.flip(-1)
    return y.transpose(1, 2)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
    *,
    backend: str = "auto",
) -> Tensor:
    """A Mamba-1 block without its first projection: xz (batch, 2 D, L) to (batch, L, width)."""
    y = _inner(
        "mamba_inner_fn",
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        [A],
        B,
        C,
        D,
        delta_bias,
        B_proj_bias,
        C_proj_bias,
        delta_softplus,
        (b_rms_weight, c_rms_weight, dt_rms_weight),
        b_c_dt_rms_eps,
        backend,
    )
    return linear(y, out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """`mamba_inner_fn` before its last projection: (batch, D, L). Source: hustvl/Vim."""
    y = _inner(
        "mamba_inner_fn_no_out_proj",
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        [A],
        B,
        C,
        D,
        delta_bias,
        B_proj_bias,
        C_proj_bias,
        delta_softplus,
    )
    return y.transpose(1, 2)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    *,
    backend: str = "auto",
) -> Tensor:
    """`mamba_inner_fn` whose scan also runs from the end to the start, with A_b. Source: hustvl/Vim."""
    y = _inner(
        "bimamba_inner_fn",
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        [A, A_b],
        B,
        C,
        D,
        delta_bias,
        B_proj_bias,
        C_proj_bias,
        delta_softplus,
        backend=backend,
    )
    return linear(y, out_proj_weight, out_proj_bias)


def mamba_inner_ref(*arguments: Any, **options: Any) -> Tensor:
    """`mamba_inner_fn` with the plain loop."""
    return mamba_inner_fn(*arguments, **options, backend="reference")


def bimamba_inner_ref(*arguments: Any, **options: Any) -> Tensor:
    """`bimamba_inner_fn` with the plain loop."""
    return bimamba_inner_fn(*arguments, **options, backend="reference")
