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
    sizes = (batch, channels, states, length)
    B, C = _grouped("B", B, sizes), _grouped("C", C, sizes)
    groups = max(B.shape[1], C.shape[1])
    if 0 in (B.shape[1], C.shape[1]) or channels % groups or groups % B.shape[1] or groups % C.shape[1]:
        given = f"{B.shape[1]} and {C.shape[1]}" if B.shape[1] != C.shape[1] else str(groups)
        raise ValueError(f"{given} groups of B and C do not divide D = {channels} channels.")
    B, C = (value.repeat_interleave(groups // value.shape[1], 1).permute(0, 3, 1, 2) for value in (B, C))
    per_group = channels // groups
    split = (batch, groups, per_group, length)
    result = routed_scan(
        u.reshape(split).permute(0, 3, 1, 2),
        delta.reshape(split).permute(0, 3, 1, 2),
        A.reshape(groups, per_group, states),
        B,
        C,
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


def _grouped(name: str, value: Tensor, sizes: tuple[int, int, int, int]) -> Tensor:
    """B or C as (batch, G, N, L); constant in time each channel is a group."""
    batch, channels, states, length = sizes
    if value.dim() == 2:
        check_shape(name, value, "(D, N)", (channels, states))
        return value[None, :, :, None].expand(batch, channels, states, length)
    grouped = value.unsqueeze(1) if value.dim() == 3 else value
    if grouped.dim() != 4 or tuple(grouped.shape) != (batch, grouped.shape[1], states, length):
        raise ValueError(
            f"{name} must be (D, N), (batch, N, L) or (batch, G, N, L) with batch = {batch}, N = {states} and "
            f"L = {length}, it is {tuple(value.shape)}."
        )
    return grouped


selective_scan_fn = selective_scan


def selective_scan_ref(*arguments, **options):
    """`selective_scan` by the plain loop; the counterpart of mamba_ssm's function of that name."""
    return selective_scan(*arguments, **options, backend="reference")
