"""The scan core shared by every visual Mamba: K routes, each with its own selection parameters.

Source: Liu et al. 2024, VMamba (arXiv:2401.10166), section 4; Gu and Dao 2023, Mamba (arXiv:2312.00752), algorithm 2.

Glossary: B batch, L tokens, E inner width, N state size, R rank of the step size, K routes.

For route k and a token with features u (E), with outputs added over the routes where the token lies:

    [dt | B | C] = x_proj_weight[k] @ u                     R + N + N numbers per token
    delta        = softplus(dt_projs_weight[k] @ dt + dt_projs_bias[k])
    h            = exp(delta * A_k) * h_before + delta * B * u,      A_k = -exp(A_logs_k)
    y_k          = C . h + Ds_k * u

The projections act on each token alone, so they run once, in spatial order, and only the scan reads the routes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from medmamba.kernels import routed_scan
from medmamba.networks.blocks.linear import linear

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # initial step sizes, Mamba's defaults


class ScanModule(nn.Module):
    """A module that runs an operator of medmamba.kernels, on the backend that its ``scan_backend`` names."""

    scan_backend: str = "auto"


class ScanCore(ScanModule):
    """Selective scan of (B, L, E) tokens along K routes, summed (or stacked) over the routes.

    Parameter names and shapes are those of VM-UNet's SS2D, so published weights fit. The table of routes is an argument
    of each call.
    """

    def __init__(self, inner: int, routes: int, state_size: int, dt_rank: int) -> None:
        super().__init__()
        self.inner, self.routes, self.state_size, self.dt_rank = inner, routes, state_size, dt_rank
        bound = inner**-0.5
        self.x_proj_weight = nn.Parameter(torch.empty(routes, dt_rank + 2 * state_size, inner).uniform_(-bound, bound))
        bound = dt_rank**-0.5
        self.dt_projs_weight = nn.Parameter(torch.empty(routes, inner, dt_rank).uniform_(-bound, bound))
        self.dt_projs_bias = nn.Parameter(initial_dt_bias(routes, inner))
        states = torch.arange(1, state_size + 1, dtype=torch.float32)
        self.A_logs = nn.Parameter(states.log().repeat(routes * inner, 1))  # (K*E, N)
        self.Ds = nn.Parameter(torch.ones(routes * inner))  # (K*E)

    def forward(self, x: Tensor, routes: Tensor, merge: bool = True) -> Tensor:
        """Scan ``x`` (B, L, E), in spatial order, along ``routes`` (K, L).

        Returns (B, L, E), or (B, L, K, E) if not ``merge``, in spatial order and at least in float32.
        """
        K, N, R = self.routes, self.state_size, self.dt_rank
        projected = linear(x, self.x_proj_weight.flatten(0, 1)).unflatten(-1, (K, R + 2 * N))
        dt, B, C = projected.split([R, N, N], dim=-1)  # (B, L, K, R), (B, L, K, N) twice
        return scanned(
            x,
            grouped_linear(dt, self.dt_projs_weight),  # (B, L, K, E)
            -torch.exp(at_least_float32(self.A_logs)).unflatten(0, (K, self.inner)),
            B,
            C,
            D=at_least_float32(self.Ds).unflatten(0, (K, self.inner)),
            dt_bias=at_least_float32(self.dt_projs_bias),
            routes=routes,
            merge=merge,
            backend=self.scan_backend,
        )


_counted: ContextVar[list[int] | None] = ContextVar("counted", default=None)


@contextmanager
def count_scans() -> Iterator[list[int]]:
    """Collects, for every scan inside the block, its state updates: batch x tokens x routes x channels x states."""
    found: list[int] = []
    token = _counted.set(found)
    try:
        yield found
    finally:
        _counted.reset(token)


def count_updates(updates: int) -> None:
    """Report the state updates of a scan to :func:`count_scans`."""
    if not torch.compiler.is_compiling() and (counted := _counted.get()) is not None:
        counted.append(updates)


def scanned(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **options: Any) -> Tensor:
    """:func:`medmamba.kernels.routed_scan` for a network, which never asks for the last state."""
    count_updates(dt.numel() * A.shape[-1])
    y = routed_scan(x, dt, A, B, C, **options)
    assert isinstance(y, Tensor)
    return y


def at_least_float32(x: Tensor) -> Tensor:
    """The decay, skip and step parameters are never used in half precision: a scan multiplies their errors up."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
    """K linear maps side by side: (B, L, K, R) and (K, E, R) give (B, L, K, E).

    Small ranks go through one product with a block-diagonal matrix: more arithmetic than needed, and still faster
    than a batched product, because its result is born in the layout that the scan reads.
    """
    K, E, R = weight.shape
    if K * R <= 64:
        return linear(x.flatten(2), torch.block_diag(*weight.unbind(0))).unflatten(-1, (K, E))
    return torch.einsum("blkr,ker->blke", x, weight)


def initial_dt_bias(*shape: int) -> Tensor:
    """Bias whose softplus is log-uniform between DT_MIN and DT_MAX."""
    dt = torch.exp(torch.empty(shape).uniform_(math.log(DT_MIN), math.log(DT_MAX))).clamp(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def auto_dt_rank(width: int) -> int:
    """R = ceil(width / 16), from the width of the block (not of its inner part)."""
    return math.ceil(width / 16)
