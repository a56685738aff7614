"""Parts of the scan's Triton kernels: a tile of T visits to a block of BD channels, in the registers of a warp.

Glossary: b batch entry, k route, bk both as one number, d channels of the block (BD,), n state, l position; t visits of
the tile (T,); rows (T,) rows of (b * l) that are visited; valid (T,), d_valid (BD,), both (T, BD) whether they exist;
bias, skip, rate rows of dt_bias, D and A; v step before softplus, delta after it, delta_a the step by which the state
decays; a decay, h state, g adjoint, G = a g.
"""

import triton
import triton.language as tl

RESET_STEP = tl.constexpr(1e30)  # a step after which nothing is left of a state
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def combine(a_left, b_left, a_right, b_right):
    """Two runs of positions as one: a product of decays, and what is added."""
    return a_left * a_right, b_left * a_right + b_right


@triton.jit
def _combine_adjoint(g_right, m_right, a_right, g_left, m_left, a_left):
    # g_l = C_l dy_l + a_{l+1} g_{l+1}: a run of positions is (its g if nothing enters, the factor of what enters, its
    # first a), so that the decay of the next position is met without a shifted copy
    m = m_left * a_right
    return g_left + m * g_right, m * m_right, a_left


@triton.jit
def states_of(a, added, before, first):
    """h_l = a_l h_{l-1} + added_l, (T, BD), from the state (BD,) before the tile; first (T,): whether l is 0."""
    _a, h = tl.associative_scan((a, tl.where(first[:, None], added + a * before[None, :], added)), 0, combine)
    return h


@triton.jit
def adjoints_of(a, seen, after, last):
    """g_l = seen_l + a_{l+1} g_{l+1}, (T, BD), where `after` (BD,) enters behind the tile; last (T,): l is T - 1."""
    seen += tl.where(last[:, None], after[None, :], 0.0)
    g, _m, _a = tl.associative_scan((seen, tl.full(a.shape, 1.0, tl.float32), a), 0, _combine_adjoint, reverse=True)
    return g


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
def program(K, channels, BD: tl.constexpr):
    """Batch entry and route as one 64-bit number and as two, and the block's channels."""
    bk = tl.program_id(2).to(tl.int64)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    return bk, bk // K, bk % K, d, d < channels


@triton.jit
def per_channel(pointer, k, d, d_valid, channels):
    """Row k of (K, channels); 0 for None."""
    value = tl.zeros(d.shape, tl.float32)
    if pointer is not None:
        value = tl.load(pointer + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    return value


@triton.jit
def per_state(A, k, n, d, d_valid, channels, N):
    """Column n of A (K, channels, N)."""
    return tl.load(A + (k * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32)


@triton.jit
def per_visit(pointer, rows, k, n, valid, K, N):
    """Column n of B or C (b, l, K, N) at the visits."""
    return tl.load(pointer + (rows * K + k) * N + n, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def per_visit_and_channel(pointer, rows, k, d, both, K, channels, PER_ROUTE: tl.constexpr):
    """x or dy (T, BD) at the visits, from (b, l, K, channels) or (b, l, channels)."""
    if PER_ROUTE:
        rows = rows * K + k
    return tl.load(pointer + rows[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)


@triton.jit
def visit(
    dt, bias, routes, resets, tile, b, k, d, d_valid, length, channels, K, T: tl.constexpr, SOFTPLUS: tl.constexpr
):  # fmt: skip
    """A tile of route k: where its visits lie (rows of b * l), which are inside, and which are inside with a valid
    channel; steps (T, BD), 0 beyond the end (decay 1, input 0); the steps before softplus; and the steps by which the
    state decays, RESET_STEP at a segment reset."""
    at = tile * T + tl.arange(0, T)
    valid = at < length
    place = at.to(tl.int64)
    if routes is not None:
        place = tl.load(routes + k * length + at, mask=valid, other=0).to(tl.int64)
    rows = b * length + place
    both = valid[:, None] & d_valid[None, :]
    v = tl.load(dt + k * channels + rows[:, None] * (K * channels) + d[None, :], mask=both, other=0.0).to(tl.float32)
    v += bias[None, :]
    delta = tl.where(both, _softplus(v) if SOFTPLUS else v, 0.0)
    delta_a = delta
    if resets is not None:
        reset = tl.load(resets + (b * length + at) * K + k, mask=valid, other=0)
        delta_a = tl.where((reset != 0)[:, None], RESET_STEP, delta)
    return rows, valid, both, delta, v, delta_a


@triton.jit
def row_of(values, row):
    """One row of `values` (T, BD); row: a mask (T,)."""
    return tl.sum(tl.where(row[:, None], values, 0.0), 0)


@triton.jit
def store_row(pointer, values, row, d, d_valid):
    """Store one row of `values` (T, BD); row: a mask (T,)."""
    everywhere = pointer + tl.zeros(row.shape, tl.int64)[:, None] + d[None, :]
    tl.store(everywhere, values, mask=row[:, None] & d_valid[None, :])


@triton.jit
def gradients_of_tile(to_du, to_delta, delta, v, u, g_out, skip, both, SOFTPLUS: tl.constexpr):
    """dx and ddt (T, BD) from the derivatives by delta u and by log decay."""
    slope = tl.full(v.shape, 1.0, tl.float32)
    if SOFTPLUS:
        slope = 1.0 / (1.0 + tl.exp2(-v * LOG2_E))
    return to_du * delta + g_out * skip[None, :], tl.where(both, (to_du * u + to_delta) * slope, 0.0)
