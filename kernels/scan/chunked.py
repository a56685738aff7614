"""The selective scan in torch operations: for machines without the compiled kernels, and for float64 on any device.

Time is cut into chunks. Inside a chunk the recurrence h_l = a_l h_{l-1} + b_l is solved for all l at once by doubling:
after step s, (a_l, b_l) describe the last 2^s positions together. Only products of decays are formed, never quotients
or differences of logarithms, so decay that underflows gives zero and not NaN. Chunks follow each other, and in the
backward pass each is computed again from its first state, which bounds the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus as softplus_of
from torch.utils.checkpoint import checkpoint

from medmamba.kernels.arguments import check_permutations
from medmamba.kernels.scan.inputs import ScanInputs
from medmamba.kernels.scan.reference import gather_routes, merged_and_gated, scatter_routes, segment_resets

# Elements of the largest intermediate (B, chunk, K, D, N); 2^22 float32 are 16 MiB, and about six are alive at once.
CHUNK_ELEMENTS = 1 << 22
LONGEST_CHUNK = 256


def _chunk(
    delta: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, resets: Tensor | None, h: Tensor
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


def routed_scan_chunked(scan: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output and last state."""
    x, dt, A, B, C, D, dt_bias, routes, initial_state, z, segments, softplus, merge = scan
    check_permutations(routes)
    if x.dim() == 3:
        x = x.unsqueeze(2).expand(-1, -1, dt.shape[2], -1)  # (B, L, K, D)
    delta = dt if dt_bias is None else dt + dt_bias
    delta = softplus_of(delta) if softplus else delta
    skip = None if D is None else x * D
    delta, x, B, C = (gather_routes(value, routes) for value in (delta, x, B, C))
    batch, length, K, channels = x.shape
    h = x.new_zeros(batch, K, channels, A.shape[-1]) if initial_state is None else initial_state  # (B, K, D, N)
    together = 1 if torch.compiler.is_exporting() else batch  # an exported graph is one for every batch size
    chunk = max(1, min(LONGEST_CHUNK, CHUNK_ELEMENTS // (together * A.numel()), length))
    learning = torch.is_grad_enabled() and any(v.requires_grad for v in (delta, x, A, B, C, h))
    resets = segment_resets(segments, routes, K)
    outputs = []
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        resets_here = None if resets is None else resets[:, part]
        arguments = (delta[:, part], x[:, part], A, B[:, part], C[:, part], resets_here, h)
        if learning and length > chunk:
            y, h = checkpoint(_chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            y, h = _chunk(*arguments)
        outputs.append(y)
    y = scatter_routes(torch.cat(outputs, 1), routes)
    y = y if skip is None else y + skip
    return merged_and_gated(y, z, merge), h
