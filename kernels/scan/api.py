"""The selective scan: `routed_scan` along routes through an image, and `selective_scan` in mamba_ssm's layout."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medmamba.kernels.arguments import check_kinds, check_shapes
from medmamba.kernels.availability import why_not_cpp, why_not_triton
from medmamba.kernels.backends import Backend, chooser
from medmamba.kernels.scan.reference import ScanInputs, routed_scan_chunked, routed_scan_reference

LARGEST_STATE = 256


def _cpp(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    from medmamba.kernels.scan.compiled import call_operator, routed_scan_cpp

    return call_operator(routed_scan_cpp, scan)


def _triton(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    from medmamba.kernels.scan.compiled import call_operator
    from medmamba.kernels.scan.triton_launch import routed_scan_triton

    return call_operator(routed_scan_triton, scan)


SCAN_BACKENDS: dict[str, Backend[Callable[[ScanInputs], tuple[Tensor, Tensor]]]] = {
    "cpp": Backend(_cpp, why_not_cpp),
    "triton": Backend(_triton, why_not_triton, reads_half=True),
    "torch": Backend(routed_scan_chunked),
    "reference": Backend(routed_scan_reference),
}
"""Name -> backend; a backend returns y and the last state. To add one: a file with its function, and a row here."""
choose_scan_backend = chooser(SCAN_BACKENDS)


def routed_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    routes: Tensor | None = None,
    *,
    softplus: bool = True,
    merge: bool = True,
    backend: str = "auto",
    initial_state: Tensor | None = None,
    z: Tensor | None = None,
    segments: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan K routes over the positions of an image and add up what they see.

    For each route k, with l running over positions in the order `routes[k]`::

        delta = softplus(dt + dt_bias);   h = exp(delta A) h + delta B x;   y = C h + D x

    Arguments (everything in spatial order, channels last; the routes are followed inside the kernel):
        x: (batch, L, channels), shared by all routes, or (batch, L, K, channels).
        dt: (batch, L, K, channels), step sizes before bias and softplus.
        A: (K, channels, N), negative real; N at most 256.
        B, C: (batch, L, K, N).
        D, dt_bias: (K, channels) or None.
        routes: integers (K, L); each row is a permutation: the positions in the order of the visit. None: raster order.
        softplus: whether the step is softplus(dt + dt_bias) or dt + dt_bias.
        merge: whether the K outputs are summed.
        backend: "auto", "cpp", "triton", "torch" or "reference"; one that cannot run is an error, see `backend_report`.
        initial_state: (batch, K, channels, N), the state before the first visit; None is zero.
        z: shape of the output; y is multiplied by silu(z), after the sum over the routes.
        segments: integers (batch, L), the sample that each position belongs to (mamba_ssm's seq_idx): a state starts
            from zero where the segment of a visit differs from that of the visit before.
        return_last_state: whether the state after the last visit is returned as well.

    Returns y, (batch, L, channels) if merged, else (batch, L, K, channels), in spatial order, and, if asked for, the
    last state (batch, K, channels, N). float32, computed in float32 also for float16 and bfloat16 inputs; float64 for
    float64 inputs, which only the torch and reference backends accept.

    Source: Gu and Dao 2023, arXiv:2312.00752; several routes: Liu et al. 2024 (VMamba), arXiv:2401.10166.
    """
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias}
    named |= {"initial_state": initial_state, "z": z}
    integers = {"routes": routes, "segments": segments}
    _check_shapes(x, dt, A, named | integers, merge)
    check_kinds(named, integers)
    dtype = torch.float64 if any(v is not None and v.dtype == torch.float64 for v in named.values()) else torch.float32
    chosen = SCAN_BACKENDS[choose_scan_backend(backend, x.device.type, dtype)]

    def to(kind: torch.dtype, value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(device=x.device, dtype=kind)

    if routes is not None and routes.dtype == torch.int64:
        routes = routes.clamp(-1, dt.shape[1])  # so that nothing becomes a position by being cut to 32 bits
    if not chosen.reads_half:
        x, dt, B, C = (value.to(dtype) for value in (x, dt, B, C))
    routes, segments = to(torch.int32, routes), to(torch.int32, segments)
    D, dt_bias, initial_state, z = (to(dtype, value) for value in (D, dt_bias, initial_state, z))
    scan = ScanInputs(x, dt, A.to(dtype), B, C, D, dt_bias, routes, initial_state, z, segments, softplus, merge)
    with torch.autocast(x.device.type, enabled=False):
        y, last_state = chosen.run(scan)
    return (y, last_state) if return_last_state else y


def _check_shapes(x: Tensor, dt: Tensor, A: Tensor, named: dict[str, Tensor | None], merge: bool) -> None:
    if dt.dim() != 4:
        raise ValueError(f"dt must be (batch, L, K, channels), it is {tuple(dt.shape)}.")
    batch, length, K, channels = dt.shape
    if A.dim() != 3:
        raise ValueError(f"A must be (K, channels, N), it is {tuple(A.shape)}.")
    N = A.shape[-1]
    sizes = {"batch": batch, "L": length, "K": K, "channels": channels, "N": N}
    image, along_routes = "(batch, L, channels)", "(batch, L, K, channels)"
    axes = {
        "x": along_routes if x.dim() == 4 else f"{image} or {along_routes}",
        "A": "(K, channels, N)",
        "B": "(batch, L, K, N)",
        "C": "(batch, L, K, N)",
        "D": "(K, channels)",
        "dt_bias": "(K, channels)",
        "initial_state": "(batch, K, channels, N)",
        "z": image if merge else along_routes,
        "routes": "(K, L)",
        "segments": "(batch, L)",
    }
    check_shapes(named, axes, sizes, f" to fit dt {tuple(dt.shape)}")
    for name, size in sizes.items():
        if size == 0:
            raise ValueError(f"{name} is 0: routed_scan needs at least one of each, dt is {tuple(dt.shape)}.")
    if N > LARGEST_STATE:
        raise ValueError(f"N = {N} states per channel; at most {LARGEST_STATE} are supported.")


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
    """Selective scan with mamba_ssm's signature and layout: existing Mamba code runs by changing one import.

    Groups of B and C become routes in raster order whose outputs are not merged. The layout costs two transpositions;
    networks written for medmamba use `routed_scan` itself.

    Arguments:
        u, delta, z: (batch, D, L); z gates the output with silu(z).
        A: (D, N), negative real.
        B, C: (D, N) constant in time, (batch, N, L), or (batch, G, N, L) with G dividing D.
        D, delta_bias: (D,).

    Returns the output (batch, D, L) in the dtype of u and, if asked for, the last state (batch, D, N).
    B or C constant in time is computed with one route per channel, which is slow: it exists for completeness.
    Source: state-spaces/mamba, `selective_scan_fn`.
    """
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    check_kinds(named)
    if u.dim() != 3 or A.dim() != 2 or 0 in u.shape:
        raise ValueError(
            f"u must be (batch, D, L), none of them 0, and A (D, N); they are {tuple(u.shape)} and {tuple(A.shape)}."
        )
    batch, channels, length = u.shape
    states = A.shape[1]
    sizes = {"batch": batch, "D": channels, "L": length, "N": states}
    axes = dict.fromkeys(("delta", "z"), "(batch, D, L)") | {"A": "(D, N)", "D": "(D,)", "delta_bias": "(D,)"}
    check_shapes(named, axes, sizes)
    B, C = _grouped("B", B, sizes), _grouped("C", C, sizes)
    groups = max(B.shape[1], C.shape[1])
    if 0 in (B.shape[1], C.shape[1]) or channels % groups or groups % B.shape[1] or groups % C.shape[1]:
        given = f"{B.shape[1]} and {C.shape[1]}" if B.shape[1] != C.shape[1] else str(groups)
        raise ValueError(f"{given} groups of B and C do not divide D = {channels} channels.")
    B, C = (value.repeat_interleave(groups // value.shape[1], 1).permute(0, 3, 1, 2) for value in (B, C))

    def along_routes(value: Tensor | None) -> Tensor | None:
        """(batch, D, L) as (batch, L, G, D / G)."""
        return None if value is None else value.unflatten(1, (groups, -1)).permute(0, 3, 1, 2)

    def by_route(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.unflatten(0, (groups, -1))

    inputs: Any = (along_routes(u), along_routes(delta), by_route(A), B, C, by_route(D), by_route(delta_bias))
    options: dict[str, Any] = {"softplus": delta_softplus, "merge": False, "backend": backend, "z": along_routes(z)}
    y, last_state = routed_scan(*inputs, **options, return_last_state=True)
    y = y.reshape(batch, length, channels).transpose(1, 2).to(u.dtype)  # (batch, D, L)
    return (y, last_state.reshape(batch, channels, states)) if return_last_state else y


def _grouped(name: str, value: Tensor, sizes: dict[str, int]) -> Tensor:
    """B or C as (batch, G, N, L); constant in time each channel is a group."""
    if value.dim() == 2:
        check_shapes({name: value}, {name: "(D, N)"}, sizes)
        return value[None, :, :, None].expand(sizes["batch"], -1, -1, sizes["L"])
    words = "(batch, N, L)" if value.dim() == 3 else "(batch, G, N, L) or (batch, N, L) or (D, N)"
    check_shapes({name: value}, {name: words}, sizes | {"G": value.shape[1] if value.dim() == 4 else 0})
    return value.unsqueeze(1) if value.dim() == 3 else value


selective_scan_fn = selective_scan


def selective_scan_ref(*arguments, **options):
    """`selective_scan` by the plain loop; the counterpart of mamba_ssm's function of that name."""
    return selective_scan(*arguments, **options, backend="reference")
