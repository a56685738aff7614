"""The scan in Triton for one state per channel, where memory is the limit and not arithmetic.

As `triton_kernels.py`, with the same arguments, but state, adjoint and the sum for A stay in registers from tile to
tile, so the only latency is that of the rows. A lane has four channels and reads them as one vector, which is why the
compiler may know the sizes here (128 channels take every lane of a warp, so the positions of a tile still lie in a
lane's registers).
"""

import triton
import triton.language as tl

from medmamba.kernels.scan.triton_tile import (
    LOG2_E,
    adjoints_of,
    gradients_of_tile,
    per_channel,
    per_visit,
    per_visit_and_channel,
    program,
    states_of,
    visit,
)


@triton.jit
def _row(values, row):
    """One row of (T, BD); row: a mask (T,)."""
    return tl.sum(tl.where(row[:, None], values, 0.0), 0)


@triton.jit
def scan_forward_one(
    x, dt, A, B, C, D, dt_bias, routes, resets, span_states, saved_states, sum_dt, y,
    length, channels, N, K, span_saves, saves, spans,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr, HAS_ROUTES: tl.constexpr, HAS_SEGMENTS: tl.constexpr, X_PER_ROUTE: tl.constexpr,
    KEEP_OUTPUT: tl.constexpr,
):  # fmt: skip
    """`scan_forward` for N = 1."""
    bk, b, k, d, d_valid = program(K, channels, BD)
    span = tl.program_id(1)
    t = tl.arange(0, T)
    bias = per_channel(dt_bias, k, d, d_valid, channels, HAS_DT_BIAS)
    skip = per_channel(D, k, d, d_valid, channels, HAS_D)
    rate = per_channel(A, k, d, d_valid, channels, True) * LOG2_E
    own = (bk * spans + span) * channels + d
    total = tl.zeros((BD,), tl.float32)
    state = tl.zeros((BD,), tl.float32)
    if KEEP_OUTPUT:
        state = tl.load(span_states + own, mask=d_valid, other=0.0)
    for tile in range(span * span_saves * M, tl.minimum((span + 1) * span_saves, saves) * M):
        if KEEP_OUTPUT:
            save = tile // M
            tl.store(saved_states + (bk * saves + save) * channels + d, state, mask=d_valid & (tile == save * M))
        rows, valid, both, delta, _v, delta_a = visit(
            dt, bias, routes, resets, tile, b, k, d, d_valid, length,
            channels, K, T, SOFTPLUS, HAS_ROUTES, HAS_SEGMENTS,
        )  # fmt: skip
        u = per_visit_and_channel(x, rows, k, d, both, K, channels, X_PER_ROUTE)
        total += tl.sum(delta_a, 0)
        added = delta * u * per_visit(B, rows, k, 0, valid, K, 1)[:, None]
        h = states_of(tl.exp2(delta_a * rate[None, :]), added, state, t == 0)
        state = _row(h, t == T - 1)
        if KEEP_OUTPUT:
            out = u * skip[None, :] + h * per_visit(C, rows, k, 0, valid, K, 1)[:, None]
            tl.store(y + (rows * K + k)[:, None] * channels + d[None, :], out, mask=both)
    tl.store(span_states + own, state, mask=d_valid)
    if not KEEP_OUTPUT:
        tl.store(sum_dt + (bk * spans + span) * channels + d, total, mask=d_valid)


@triton.jit
def scan_backward_one(
    x, dt, A, B, C, D, dt_bias, routes, resets, saved_states, carries, dy,
    dx, ddt, dA, dB, dC, dD, ddt_bias, scratch,
    length, channels, N, K, span_saves, saves, spans, blocks,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr, HAS_ROUTES: tl.constexpr, HAS_SEGMENTS: tl.constexpr, X_PER_ROUTE: tl.constexpr,
    DY_PER_ROUTE: tl.constexpr,
):  # fmt: skip
    """`scan_backward` for N = 1."""
    bk, b, k, d, d_valid = program(K, channels, BD)
    span = tl.program_id(1)
    t = tl.arange(0, T)
    bias = per_channel(dt_bias, k, d, d_valid, channels, HAS_DT_BIAS)
    skip = per_channel(D, k, d, d_valid, channels, HAS_D)
    rate = per_channel(A, k, d, d_valid, channels, True)
    own = (bk * spans + span) * channels + d
    carry = tl.load(carries + own, mask=d_valid, other=0.0)
    sum_rate = tl.zeros((BD,), tl.float32)
    sum_bias = tl.zeros((BD,), tl.float32)
    sum_skip = tl.zeros((BD,), tl.float32)
    last_tile = tl.minimum((span + 1) * span_saves, saves) * M - 1
    sums = tl.program_id(0).to(tl.int64) * (tl.num_programs(2) // K) * length
    kept = scratch + (bk * spans + span) * M * channels + d
    for back in range(0, last_tile - span * span_saves * M + 1):
        tile = last_tile - back
        save = tile // M
        if tile == save * M + M - 1:
            # Entering M tiles from behind: find the state before each of them from the saved one.
            state = tl.load(saved_states + (bk * saves + save) * channels + d, mask=d_valid, other=0.0)
            tl.store(kept, state, mask=d_valid)
            for forth in range(0, M - 1):
                rows, valid, both, delta, _v, delta_a = visit(
                    dt, bias, routes, resets, save * M + forth, b, k, d, d_valid, length,
                    channels, K, T, SOFTPLUS, HAS_ROUTES, HAS_SEGMENTS,
                )  # fmt: skip
                u = per_visit_and_channel(x, rows, k, d, both, K, channels, X_PER_ROUTE)
                added = delta * u * per_visit(B, rows, k, 0, valid, K, 1)[:, None]
                state = _row(states_of(tl.exp2(delta_a * (rate * LOG2_E)[None, :]), added, state, t == 0), t == T - 1)
                tl.store(kept + (forth + 1) * channels, state, mask=d_valid)
            tl.debug_barrier()
        rows, valid, both, delta, v, delta_a = visit(
            dt, bias, routes, resets, tile, b, k, d, d_valid, length,
            channels, K, T, SOFTPLUS, HAS_ROUTES, HAS_SEGMENTS,
        )  # fmt: skip
        u = per_visit_and_channel(x, rows, k, d, both, K, channels, X_PER_ROUTE)
        g_out = per_visit_and_channel(dy, rows, k, d, both, K, channels, DY_PER_ROUTE)
        got = per_visit(B, rows, k, 0, valid, K, 1)
        seen = per_visit(C, rows, k, 0, valid, K, 1)
        before = tl.load(kept + (tile - save * M) * channels, mask=d_valid, other=0.0)
        a = tl.exp2(delta_a * (rate * LOG2_E)[None, :])
        added = delta * u * got[:, None]
        h = states_of(a, added, before, t == 0)
        g = adjoints_of(a, g_out * seen[:, None], carry, t == T - 1)
        carry = _row(a * g, t == 0)
        q = g * (h - added)  # h - added is a_l h_{l-1}
        sum_rate += tl.sum(q * delta, 0)
        tl.store(dB + (sums + rows) * K + k, tl.sum(g * delta * u, 1), mask=valid)
        tl.store(dC + (sums + rows) * K + k, tl.sum(h * g_out, 1), mask=valid)
        to_x, to_dt = gradients_of_tile(g * got[:, None], q * rate[None, :], delta, v, u, g_out, skip, both, SOFTPLUS)
        out = (rows * K + k)[:, None] * channels + d[None, :]
        tl.store(dx + out, to_x, mask=both)
        tl.store(ddt + out, to_dt, mask=both)
        sum_bias += tl.sum(to_dt, 0)
        sum_skip += tl.sum(g_out * u, 0)
    tl.store(dA + own, sum_rate, mask=d_valid)
    tl.store(dD + own, sum_skip, mask=d_valid)
    tl.store(ddt_bias + own, sum_bias, mask=d_valid)
