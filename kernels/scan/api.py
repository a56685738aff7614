"""The selective scan along routes through an image: `routed_scan`, which checks its arguments and calls a backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medmamba.kernels.arguments import check_kinds, check_shape
from medmamba.kernels.availability import why_not_cpp, why_not_triton
from medmamba.kernels.backends import Backend, chooser
from medmamba.kernels.scan.reference import ScanInputs, routed_scan_chunked, routed_scan_reference

LARGEST_STATE = 256


def _cpp(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    from medmamba.kernels.scan.cpp import run

    return run(scan)


def _triton(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    from medmamba.kernels.scan.triton_launch import run

    return run(scan)


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
    expected = {
        "x": along_routes if x.dim() == 4 else image,
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
    for name, axes in expected.items():
        words = f"{image} or {along_routes}" if axes == image and name == "x" else axes
        shape = tuple(sizes[axis] for axis in axes.strip("()").split(", "))
        check_shape(name, named[name], words, shape, f" to fit dt {tuple(dt.shape)}")
    for name, size in sizes.items():
        if size == 0:
            raise ValueError(f"{name} is 0: routed_scan needs at least one of each, dt is {tuple(dt.shape)}.")
    if N > LARGEST_STATE:
        raise ValueError(f"N = {N} states per channel; at most {LARGEST_STATE} are supported.")
