"""Parts of the scan's Triton kernels: a tile of T visits to a block of BD channels, in the registers of a warp.

The visits of a tile are written out: each is a scalar or a vector (BD,) of its own in a tuple of T, and what is carried
from visit to visit is plain arithmetic in the lane that owns the channel.

Glossary: b batch entry, k route, bk both as one number, d channels of the block (BD,), n state; of each visit: row in
(b * l), inside whether it exists, keep whether the state before it is kept (no segment reset), v step before bias and
softplus, delta after them, a decay, h state, g adjoint; bias, skip, rate rows of dt_bias, D and A; d_valid (BD,)
whether channels exist.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
INFINITY = tl.constexpr(float("inf"))  # the sum of steps across a segment reset: nothing is left of a state


@triton.jit
def _softplus(v):
    # max(v, 0) + log(1 + e), e = exp(-|v|); log(1 + e) = e q(e), relative error 3e-8 also where the step is tiny
    e = tl.exp2(-tl.abs(v) * LOG2_E)
    q = 5.364818371e-03 * e - 3.006576847e-02
    q = q * e + 7.920449691e-02
    q = q * e - 1.375379908e-01
    q = q * e + 1.915365342e-01
    q = q * e - 2.485716329e-01
    q = q * e + 3.332132257e-01
    q = q * e - 4.999964796e-01
    return tl.maximum(v, 0.0) + (q * e + 1.0) * e


@triton.jit
def program(K, channels, blocks, BD: tl.constexpr):
    """Batch entry and route as one 64-bit number and as two, the block, and its channels.

    All three are in the grid's first axis, the only one that takes more than 65,535 programs.
    """
    block = tl.program_id(0) % blocks
    bk = (tl.program_id(0) // blocks).to(tl.int64)
    d = block * BD + tl.arange(0, BD)
    return bk, bk // K, bk % K, block, d, d < channels


@triton.jit
def per_channel(pointer, k, d, d_valid, channels):
    """Row k of (K, channels); 0 for None."""
    value = tl.zeros(d.shape, tl.float32)
    if pointer is not None:
        value = tl.load(pointer + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    return value


@triton.jit
def per_state(A, k, n, d, d_valid, channels, N):
    """Row n of A (K, N, channels)."""
    return tl.load(A + (k * N + n) * channels + d, mask=d_valid, other=0.0).to(tl.float32)


@triton.jit
def visits(routes, resets, tile, b, k, length, K, T: tl.constexpr):
    """rows, inside and keep of the visits of a tile; a visit beyond the end has the row of the first position."""
    rows, inside, keep = (), (), ()
    for i in tl.static_range(T):
        at = tile * T + i
        exists = at < length
        place = tl.where(exists, at, 0).to(tl.int64)
        if routes is not None:
            place = tl.load(routes + k * length + at, mask=exists, other=0).to(tl.int64)
        rows = rows + (b * length + place,)
        inside = inside + (exists,)
        if resets is not None:
            keep = keep + (tl.load(resets + (b * length + at) * K + k, mask=exists, other=0) == 0,)
        else:
            keep = keep + (True,)
    return rows, inside, keep


@triton.jit
def per_visit_and_channel(pointer, rows, inside, k, d, d_valid, K, channels, PER_ROUTE: tl.constexpr, T: tl.constexpr):
    """x, dt or dy (BD,) of each visit, from (b, l, K, channels) or (b, l, channels); 0 beyond the end."""
    values = ()
    for i in tl.static_range(T):
        row = rows[i] * K + k if PER_ROUTE else rows[i]
        values = values + (tl.load(pointer + row * channels + d, mask=d_valid & inside[i], other=0.0).to(tl.float32),)
    return values


@triton.jit
def steps(v, bias, inside, d_valid, SOFTPLUS: tl.constexpr, T: tl.constexpr):
    """delta of each visit (BD,), 0 beyond the end (decay 1, input 0)."""
    delta = ()
    for i in tl.static_range(T):
        biased = v[i] + bias
        delta = delta + (tl.where(d_valid & inside[i], _softplus(biased) if SOFTPLUS else biased, 0.0),)
    return delta


@triton.jit
def decay(delta, rate2, keep, resets):
    """exp(delta A), with rate2 = A log2(e); 0 at a segment reset."""
    a = tl.exp2(delta * rate2)
    if resets is not None:
        a = tl.where(keep, a, 0.0)
    return a


@triton.jit
def sum_of_steps(delta, keep, resets, T: tl.constexpr):
    """The step by which a state decays over the tile (BD,)."""
    total = delta[0] if resets is None else tl.where(keep[0], delta[0], INFINITY)
    for i in tl.static_range(1, T):
        total += delta[i] if resets is None else tl.where(keep[i], delta[i], INFINITY)
    return total
