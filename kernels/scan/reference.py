"""The selective scan in torch operations: the plain loop that every backend is compared with, and the scan in chunks.

The loop is equations 2a, 2b and 4 of Gu and Dao 2023, arXiv:2312.00752, in the dtype of its inputs. The chunks are for
machines without the compiled kernels, and for float64. Within a chunk h_l = a_l h_{l-1} + b_l is solved for
all l at once by doubling: after step s, (a_l, b_l) describe the last 2^s positions together. Only products of decays
are formed, so decay that underflows gives zero and not NaN. In the backward pass each chunk is computed again.

On a CPU, where a call costs less than another passage through memory, and without gradients, one operation per position
takes the place of the doubling, in chunks that stay in the cache.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus
from torch.utils.checkpoint import checkpoint

from medmamba.kernels.arguments import check_permutations
from medmamba.kernels.operators import needs_gradient

# Elements of the largest intermediate (B, chunk, K, D, N); 2^22 float32 are 16 MiB, and about six are alive at once.
CHUNK_ELEMENTS = 1 << 22
LONGEST_CHUNK = 256
# The same for positions one by one; 2^18 float32 are 1 MiB, and two or three are alive at once.
CACHED_ELEMENTS = 1 << 18


class ScanInputs(NamedTuple):
    """Arguments of `medmamba.kernels.routed_scan`, checked and converted: float32, or float64 where that was given.

    Shapes as there, in spatial order; integers are int32. That the rows of `routes` are permutations is for the backend
    to check. One that reads half precision gets x, dt, B and C as they were given.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    routes: Tensor | None
    initial_state: Tensor | None
    z: Tensor | None
    segments: Tensor | None
    softplus: bool
    merge: bool


def gather_routes(value: Tensor, routes: Tensor | None) -> Tensor:
    """Put the rows of (B, L, K, ...) into the order in which each of the K routes visits them."""
    if routes is None:
        return value
    index = routes.t().long().reshape(1, *routes.t().shape, *([1] * (value.dim() - 3)))  # (1, L, K, 1...)
    return value.gather(1, index.expand_as(value))


def segment_resets(segments: Tensor | None, routes: Tensor | None, K: int) -> Tensor | None:
    """Where the state starts again from zero, because a visit lies in another segment than the one before it.

    Boolean (B, L, K) in the order of the visits; None without segments.
    """
    if segments is None:
        return None
    visited = gather_routes(segments.unsqueeze(2).expand(-1, -1, K), routes)
    other = visited[:, 1:] != visited[:, :-1]
    return torch.cat([torch.zeros_like(visited[:, :1], dtype=torch.bool), other], 1)


def visits_of(scan: ScanInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """delta, x, B, C and resets along the routes (B, L, K, ...); h (B, K, D, N) before the first visit; D x in space.

    Raises ValueError for a route that is not a permutation.
    """
    check_permutations(scan.routes)
    batch, _length, K, channels = scan.dt.shape
    x = scan.x.unsqueeze(2).expand(-1, -1, K, -1) if scan.x.dim() == 3 else scan.x
    delta = scan.dt if scan.dt_bias is None else scan.dt + scan.dt_bias
    delta = softplus(delta) if scan.softplus else delta
    skip = None if scan.D is None else x * scan.D
    delta, x, B, C = (gather_routes(value, scan.routes) for value in (delta, x, scan.B, scan.C))
    h = x.new_zeros(batch, K, channels, scan.A.shape[-1]) if scan.initial_state is None else scan.initial_state
    return delta, x, B, C, segment_resets(scan.segments, scan.routes, K), h, skip


def output_of(y: Tensor, skip: Tensor | None, scan: ScanInputs) -> Tensor:
    """The output from y (B, L, K, D) without D x, along the routes: in spatial order, merged if requested, gated."""
    y = gather_routes(y, None if scan.routes is None else scan.routes.argsort(1))
    y = y if skip is None else y + skip
    y = y.sum(2) if scan.merge else y
    return y if scan.z is None else y * silu(scan.z)


def routed_scan_reference(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state, by a plain loop over time."""
    delta, x, B, C, resets, h, skip = visits_of(scan)
    outputs = []
    for step in range(x.shape[1]):
        if resets is not None:
            h = h.masked_fill(resets[:, step, :, None, None], 0)
        d = delta[:, step].unsqueeze(-1)  # (B, K, D, 1)
        h = torch.exp(d * scan.A) * h + d * x[:, step].unsqueeze(-1) * B[:, step].unsqueeze(2)
        outputs.append((h * C[:, step].unsqueeze(2)).sum(-1))  # (B, K, D)
    return output_of(torch.stack(outputs, 1), skip, scan), h


def _chunk(
    A: Tensor, h: Tensor, delta: Tensor, x: Tensor, B: Tensor, C: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, K, D) and last state (B, K, D, N) of T positions that start from state h."""
    a = torch.exp(delta.unsqueeze(-1) * A)  # (B, T, K, D, N)
    if resets is not None:
        a = a.masked_fill(resets[..., None, None], 0)
    b = (delta * x).unsqueeze(-1) * B.unsqueeze(3)
    b = torch.cat([b[:, :1] + a[:, :1] * h.unsqueeze(1), b[:, 1:]], 1)
    reach = 1
    while reach < a.shape[1]:
        b = torch.cat([b[:, :reach], b[:, reach:] + a[:, reach:] * b[:, :-reach]], 1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return (b * C.unsqueeze(3)).sum(-1), b[:, -1]


def _chunk_by_position(
    A: Tensor, h: Tensor, delta: Tensor, x: Tensor, B: Tensor, C: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`_chunk` without a gradient."""
    a = torch.exp(delta.unsqueeze(-1) * A)  # (B, T, K, D, N)
    if resets is not None:
        a = a.masked_fill(resets[..., None, None], 0)
    b = (delta * x).unsqueeze(-1) * B.unsqueeze(3)
    for decay, state in zip(a.unbind(1), b.unbind(1), strict=True):
        h = state.addcmul_(decay, h)
    return (b @ C.unsqueeze(-1)).squeeze(-1), h


def routed_scan_chunked(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state, in chunks."""
    *along_routes, h, skip = visits_of(scan)
    batch, length = scan.dt.shape[:2]
    together = 1 if torch.compiler.is_exporting() else batch  # an exported graph is one for every batch size
    learning = needs_gradient([*along_routes, scan.A, h])
    traced = torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()
    one_by_one = h.device.type == "cpu" and not learning and not traced
    elements = CACHED_ELEMENTS if one_by_one else CHUNK_ELEMENTS
    chunk = max(1, min(LONGEST_CHUNK, elements // (together * scan.A.numel()), length))
    solve = _chunk_by_position if one_by_one else _chunk
    outputs = []
    for start in range(0, length, chunk):
        here: list[Any] = [None if value is None else value[:, start : start + chunk] for value in along_routes]
        if learning and length > chunk:
            y, h = checkpoint(_chunk, scan.A, h, *here, use_reentrant=False, preserve_rng_state=False)
        else:
            y, h = solve(scan.A, h, *here)
        outputs.append(y)
    return output_of(torch.cat(outputs, 1), skip, scan), h
