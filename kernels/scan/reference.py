"""The selective scan as a plain loop over time: the truth that every backend is compared with.

In the dtype of its inputs (float64 for golden tests and gradcheck), differentiable by autograd, slow, and short enough
to be checked against the equation by eye (Gu and Dao 2023, arXiv:2312.00752, equations 2a, 2b and 4):

    delta_l = softplus(dt_l + dt_bias)
    h_l = exp(delta_l A) h_{l-1} + delta_l B_l x_l
    y_l = C_l h_l + D x_l
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.nn.functional import softplus as softplus_of

from medmamba.kernels.arguments import check_permutations
from medmamba.kernels.scan.inputs import ScanInputs


def gather_routes(value: Tensor, routes: Tensor | None) -> Tensor:
    """Put the rows of (B, L, K, ...) into the order in which each of the K routes visits them."""
    if routes is None:
        return value
    index = routes.t().long().reshape(1, *routes.t().shape, *([1] * (value.dim() - 3)))  # (1, L, K, 1...)
    return value.gather(1, index.expand_as(value))


def scatter_routes(value: Tensor, routes: Tensor | None) -> Tensor:
    """Put the rows of (B, L, K, ...) back into spatial order: the inverse of `gather_routes`."""
    return gather_routes(value, None if routes is None else routes.argsort(1))


def segment_resets(segments: Tensor | None, routes: Tensor | None, K: int) -> Tensor | None:
    """Where the state starts again from zero, because a visit lies in another segment than the one before it.

    Boolean (B, L, K) in the order of the visits; None without segments.
    """
    if segments is None:
        return None
    visited = gather_routes(segments.unsqueeze(2).expand(-1, -1, K), routes)
    other = visited[:, 1:] != visited[:, :-1]
    return torch.cat([torch.zeros_like(visited[:, :1], dtype=torch.bool), other], 1)


def routed_scan_reference(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state."""
    x, dt, A, B, C, D, dt_bias, routes, initial_state, z, segments, softplus, merge = scan
    check_permutations(routes)
    if x.dim() == 3:
        x = x.unsqueeze(2).expand(-1, -1, dt.shape[2], -1)  # (B, L, K, D)
    delta = dt if dt_bias is None else dt + dt_bias
    delta = softplus_of(delta) if softplus else delta
    skip = x * D if D is not None else torch.zeros_like(x)
    delta, x, B, C = (gather_routes(value, routes) for value in (delta, x, B, C))
    batch, length, K, channels = x.shape
    h = x.new_zeros(batch, K, channels, A.shape[-1]) if initial_state is None else initial_state  # (B, K, D, N)
    resets = segment_resets(segments, routes, K)
    outputs = []
    for step in range(length):
        if resets is not None:
            h = h.masked_fill(resets[:, step, :, None, None], 0)
        d = delta[:, step].unsqueeze(-1)  # (B, K, D, 1)
        h = torch.exp(d * A) * h + d * x[:, step].unsqueeze(-1) * B[:, step].unsqueeze(2)
        outputs.append((h * C[:, step].unsqueeze(2)).sum(-1))  # (B, K, D)
    y = scatter_routes(torch.stack(outputs, 1), routes) + skip
    return merged_and_gated(y, z, merge), h


def merged_and_gated(y: Tensor, z: Tensor | None, merge: bool) -> Tensor:
    """y (B, L, K, D) as it is returned: summed over the routes if `merge`, multiplied by silu(z) if there is a gate."""
    y = y.sum(2) if merge else y
    return y if z is None else y * silu(z)
