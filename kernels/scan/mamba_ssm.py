"""`selective_scan` with mamba_ssm's signature and meaning: existing Mamba code runs by changing one import.

A thin wrapper around `routed_scan`: groups of B and C become routes in raster order whose outputs are not merged. The
(B, D, L) layout costs two transpositions; networks written for medmamba use `routed_scan` itself.
"""

from __future__ import annotations

from torch import Tensor

from medmamba.kernels.arguments import check_kinds, check_shape
from medmamba.kernels.scan.api import routed_scan


def selective_scan(
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan in mamba_ssm's layout.

    Arguments:
        u, delta, z: (batch, D, L); z gates the output with silu(z).
        A: (D, N), negative real.
        B, C: (D, N) constant in time, (batch, N, L), or (batch, G, N, L) with G dividing D.
        D, delta_bias: (D,).

    Returns the output (batch, D, L) in the dtype of u and, if asked for, the last state (batch, D, N).
    B or C constant in time is computed with one route per channel, which is slow: it exists for completeness.
    Source: state-spaces/mamba, `selective_scan_fn`.
    """
    check_kinds({"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias})
    if u.dim() != 3 or delta.shape != u.shape:
        raise ValueError(f"u and delta must both be (batch, D, L), they are {tuple(u.shape)} and {tuple(delta.shape)}.")
    if 0 in u.shape:
        raise ValueError(f"u is empty: {tuple(u.shape)}.")
    batch, channels, length = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A must be (D, N) with D = {channels}, it is {tuple(A.shape)}.")
    check_shape("D", D, "(D,)", (channels,))
    check_shape("delta_bias", delta_bias, "(D,)", (channels,))
    if z is not None and z.shape != u.shape:
        raise ValueError(f"z must have the shape of u, {tuple(u.shape)}, it is {tuple(z.shape)}.")
    states = A.shape[1]
    constant = B.dim() == 2 or C.dim() == 2
    groups = channels if constant else max(_groups("B", B), _groups("C", C))
    if groups == 0 or channels % groups:
        raise ValueError(f"{groups} groups of B and C do not divide D = {channels} channels.")
    per_group = channels // groups
    split = (batch, groups, per_group, length)
    result = routed_scan(
        u.reshape(split).permute(0, 3, 1, 2),
        delta.reshape(split).permute(0, 3, 1, 2),
        A.reshape(groups, per_group, states),
        _per_group("B", B, groups, (batch, channels, states, length)),
        _per_group("C", C, groups, (batch, channels, states, length)),
        None if D is None else D.reshape(groups, per_group),
        None if delta_bias is None else delta_bias.reshape(groups, per_group),
        softplus=delta_softplus,
        merge=False,
        backend=backend,
        z=None if z is None else z.reshape(split).permute(0, 3, 1, 2),
        return_last_state=True,
    )
    assert isinstance(result, tuple)
    y, last_state = result
    y = y.reshape(batch, length, channels).transpose(1, 2)  # (batch, D, L)
    y = y.to(u.dtype)
    return (y, last_state.reshape(batch, channels, states)) if return_last_state else y


def _groups(name: str, value: Tensor) -> int:
    if value.dim() not in (3, 4):
        raise ValueError(f"{name} must be (D, N), (batch, N, L) or (batch, G, N, L), it is {tuple(value.shape)}.")
    return value.shape[1] if value.dim() == 4 else 1


def _per_group(name: str, value: Tensor, groups: int, sizes: tuple[int, int, int, int]) -> Tensor:
    """B or C as (batch, L, groups, N)."""
    batch, channels, states, length = sizes
    if value.dim() == 2:
        check_shape(name, value, "(D, N)", (channels, states))
        return value.expand(batch, length, channels, states)
    value = value.unsqueeze(1) if value.dim() == 3 else value
    own = value.shape[1]
    if tuple(value.shape) != (batch, own, states, length) or own == 0 or groups % own:
        raise ValueError(
            f"{name} must be (batch, G, N, L) = ({batch}, G, {states}, {length}) with G dividing D = {channels}, "
            f"it is {tuple(value.shape)}."
        )
    return value.repeat_interleave(groups // own, 1).permute(0, 3, 1, 2)


selective_scan_fn = selective_scan


def selective_scan_ref(*arguments, **options):
    """`selective_scan` by the plain loop; the counterpart of mamba_ssm's function of that name."""
    return selective_scan(*arguments, **options, backend="reference")
