"""The selective scan in Triton, for CUDA and ROCm devices, in the native layout.

A program owns a block of channels and a span of positions, which it walks in tiles of T, as kernels/README.md derives.
With one state per channel (ONE) state, adjoint and the sum for A stay in registers from tile to tile. Sums over
channels (dB, dC) and positions (dA, dD, ddt_bias) go to partial buffers, added in fixed order: the same bits always.
"""

import triton
import triton.language as tl

from medmamba.kernels.scan.triton_tile import (
    LOG2_E,
    adjoints_of,
    combine,
    gradients_of_tile,
    per_channel,
    per_state,
    per_visit,
    per_visit_and_channel,
    program,
    row_of,
    states_of,
    store_row,
    visit,
)

# The compiler knows nothing about the divisibility of sizes: it would widen loads to several channels per lane and
# spread the positions of a tile over lanes, and the scan would leave the registers. 32 channels are 128 bytes anyhow.
NO_HINTS = ("length", "channels", "N", "K", "span_saves", "saves", "spans", "blocks")


def _forward(
    x, dt, A, B, C, D, dt_bias, routes, resets, span_states, saved_states, sum_dt, y,
    length, channels, N, K, span_saves, saves, spans,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, X_PER_ROUTE: tl.constexpr,
    KEEP_OUTPUT: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """y: (b, l, k, d) float32. span_states: (b, k, spans, n, d) float32, the state at a span's start, here turned into
    that at its end; no other program touches it. saved_states: (b, k, saves, n, d), the state before every M tiles.
    sum_dt: (b, k, spans, d). If not KEEP_OUTPUT, the spans start from zero, and y and saved_states are not written."""
    if ONE:
        N = 1
    bk, b, k, d, d_valid = program(K, channels, BD)
    span = tl.program_id(1)
    t = tl.arange(0, T)
    bias = per_channel(dt_bias, k, d, d_valid, channels)
    skip = per_channel(D, k, d, d_valid, channels)
    total = tl.zeros((BD,), tl.float32)
    state = tl.zeros((BD,), tl.float32)
    first_rate = per_state(A, k, 0, d, d_valid, channels, N)
    own = span_states + (bk * spans + span) * N * channels
    if ONE and KEEP_OUTPUT:
        state = tl.load(own + d, mask=d_valid, other=0.0)
    if not ONE:
        if not KEEP_OUTPUT:
            for n in range(0, N):
                tl.store(own + n * channels + d, state, mask=d_valid)
        tl.debug_barrier()
    for tile in range(span * span_saves * M, tl.minimum((span + 1) * span_saves, saves) * M):
        save = tile // M
        rows, valid, both, delta, _v, delta_a = visit(
            dt, bias, routes, resets, tile, b, k, d, d_valid, length, channels, K, T, SOFTPLUS
        )
        u = per_visit_and_channel(x, rows, k, d, both, K, channels, X_PER_ROUTE)
        du = delta * u
        out = u * skip[None, :]
        total += tl.sum(delta_a, 0)
        for n in tl.range(0, N, loop_unroll_factor=4):
            before = state if ONE else tl.load(own + n * channels + d, mask=d_valid, other=0.0)
            if KEEP_OUTPUT:
                saved = ((bk * saves + save) * N + n) * channels
                tl.store(saved_states + saved + d, before, mask=d_valid & (tile == save * M))
            rate = first_rate if ONE else per_state(A, k, n, d, d_valid, channels, N)
            a = tl.exp2(delta_a * (rate * LOG2_E)[None, :])
            h = states_of(a, du * per_visit(B, rows, k, n, valid, K, N)[:, None], before, t == 0)
            if KEEP_OUTPUT:
                out += h * per_visit(C, rows, k, n, valid, K, N)[:, None]
            if ONE:
                state = row_of(h, t == T - 1)
            else:
                store_row(own + n * channels, h, t == T - 1, d, d_valid)
        if KEEP_OUTPUT:
            tl.store(y + (rows * K + k)[:, None] * channels + d[None, :], out, mask=both)
        if not ONE:
            tl.debug_barrier()
    if ONE:
        tl.store(own + d, state, mask=d_valid)
    if not KEEP_OUTPUT:
        tl.store(sum_dt + (bk * spans + span) * channels + d, total, mask=d_valid)


scan_forward = triton.jit(_forward, do_not_specialize=NO_HINTS)
scan_forward_one = triton.jit(_forward)  # hints are welcome: 128 channels take every lane of a warp anyhow


@triton.jit(do_not_specialize=NO_HINTS)
def pass_spans(
    A, sum_dt, values, entering, leaving, channels, N, K, spans,
    BD: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Turns what spans add to the state, each from zero, into the true state at their starts, in place; or, from the
    last to the first, what they add to the adjoint into what enters each at its end.

    values: (b, k, spans, n, d). entering, leaving: (b, k, d, n), what enters the first span and leaves the last in the
    direction of the way. The decay over a whole span is exp2(A * sum of the steps)."""
    bk, _b, k, d, d_valid = program(K, channels, BD)
    n = tl.program_id(1)
    rate = per_state(A, k, n, d, d_valid, channels, N) * LOG2_E
    h = tl.zeros((BD,), tl.float32)
    if entering is not None:
        h = tl.load(entering + (bk * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32)
    for step in range(0, spans):
        span = spans - 1 - step if ADJOINT else step
        here = values + ((bk * spans + span) * N + n) * channels + d
        local = tl.load(here, mask=d_valid, other=0.0)
        tl.store(here, h, mask=d_valid)
        decay = tl.exp2(rate * tl.load(sum_dt + (bk * spans + span) * channels + d, mask=d_valid, other=0.0))
        h = decay * h + local
    if leaving is not None:
        tl.store(leaving + (bk * channels + d) * N + n, h, mask=d_valid)


@triton.jit(do_not_specialize=NO_HINTS)
def adjoint_spans(
    dt, A, C, dt_bias, routes, resets, dy, carries, sum_dt,
    length, channels, N, K, span_saves, saves, spans,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, DY_PER_ROUTE: tl.constexpr,
):  # fmt: skip
    """What each span adds to the adjoint that leaves it at its start, a_first g_first: carries (b, k, spans, n, d)."""
    bk, b, k, d, d_valid = program(K, channels, BD)
    span = tl.program_id(1)
    t = tl.arange(0, T)
    bias = per_channel(dt_bias, k, d, d_valid, channels)
    base = (bk * spans + span) * N * channels
    for n in range(0, N):
        tl.store(carries + base + n * channels + d, tl.zeros((BD,), tl.float32), mask=d_valid)
    tl.debug_barrier()
    total = tl.zeros((BD,), tl.float32)
    last_tile = tl.minimum((span + 1) * span_saves, saves) * M - 1
    for back in range(0, last_tile - span * span_saves * M + 1):
        tile = last_tile - back
        rows, valid, both, _delta, _v, delta_a = visit(
            dt, bias, routes, resets, tile, b, k, d, d_valid, length, channels, K, T, SOFTPLUS
        )
        g_out = per_visit_and_channel(dy, rows, k, d, both, K, channels, DY_PER_ROUTE)
        total += tl.sum(delta_a, 0)
        for n in range(0, N):
            here = carries + base + n * channels
            carry = tl.load(here + d, mask=d_valid, other=0.0)
            # G_l = a_l (G_{l+1} + C_l dy_l), so the element at l is (a_l, a_l C_l dy_l)
            a = tl.exp2(delta_a * (per_state(A, k, n, d, d_valid, channels, N) * LOG2_E)[None, :])
            seen = g_out * per_visit(C, rows, k, n, valid, K, N)[:, None]
            added = a * (seen + tl.where((t == T - 1)[:, None], carry[None, :], 0.0))
            _a, G = tl.associative_scan((a, added), 0, combine, reverse=True)
            store_row(here, G, t == 0, d, d_valid)
        tl.debug_barrier()
    tl.store(sum_dt + (bk * spans + span) * channels + d, total, mask=d_valid)


def _backward(
    x, dt, A, B, C, D, dt_bias, routes, resets, saved_states, carries, dy,
    dx, ddt, dA, dB, dC, dD, ddt_bias, scratch,
    length, channels, N, K, span_saves, saves, spans, blocks,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, X_PER_ROUTE: tl.constexpr,
    DY_PER_ROUTE: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """Gradients: dx, ddt (b, l, k, d); dA (b, k, spans, n, d) and dD, ddt_bias (b, k, spans, d), to be summed;
    dB, dC (blocks, b, l, k, n), to be summed over the channel blocks. carries: (b, k, spans, n, d).
    scratch: (b, k, spans, M, n, d)."""
    if ONE:
        N = 1
    bk, b, k, d, d_valid = program(K, channels, BD)
    span = tl.program_id(1)
    t = tl.arange(0, T)
    bias = per_channel(dt_bias, k, d, d_valid, channels)
    skip = per_channel(D, k, d, d_valid, channels)
    base = (bk * spans + span) * N * channels
    state = tl.zeros((BD,), tl.float32)
    carry = tl.zeros((BD,), tl.float32)
    first_rate = per_state(A, k, 0, d, d_valid, channels, N)
    if ONE:
        carry = tl.load(carries + base + d, mask=d_valid, other=0.0)
    else:
        for n in range(0, N):
            tl.store(dA + base + n * channels + d, state, mask=d_valid)
        tl.debug_barrier()
    sum_rate = tl.zeros((BD,), tl.float32)
    sum_bias = tl.zeros((BD,), tl.float32)
    sum_skip = tl.zeros((BD,), tl.float32)
    last_tile = tl.minimum((span + 1) * span_saves, saves) * M - 1
    sums = tl.program_id(0).to(tl.int64) * (tl.num_programs(2) // K) * length
    # Strides of the scratch are sizes, not constants: see NO_HINTS.
    own = scratch + (bk * spans + span) * M * N * channels
    for back in range(0, last_tile - span * span_saves * M + 1):
        tile = last_tile - back
        save = tile // M
        if tile == save * M + M - 1:
            # Entering M tiles from behind: find the state before each of them from the saved one.
            for n in range(0, N):
                state = tl.load(saved_states + ((bk * saves + save) * N + n) * channels + d, mask=d_valid, other=0.0)
                tl.store(own + n * channels + d, state, mask=d_valid)
            tl.debug_barrier()
            for forth in range(0, M - 1):
                rows, valid, both, delta, _v, delta_a = visit(
                    dt, bias, routes, resets, save * M + forth, b, k, d, d_valid, length, channels, K, T, SOFTPLUS
                )
                du = delta * per_visit_and_channel(x, rows, k, d, both, K, channels, X_PER_ROUTE)
                for n in range(0, N):
                    before = state if ONE else tl.load(own + (forth * N + n) * channels + d, mask=d_valid, other=0.0)
                    rate = first_rate if ONE else per_state(A, k, n, d, d_valid, channels, N)
                    a = tl.exp2(delta_a * (rate * LOG2_E)[None, :])
                    h = states_of(a, du * per_visit(B, rows, k, n, valid, K, N)[:, None], before, t == 0)
                    if ONE:
                        state = row_of(h, t == T - 1)
                        tl.store(own + (forth + 1) * channels + d, state, mask=d_valid)
                    else:
                        store_row(own + ((forth + 1) * N + n) * channels, h, t == T - 1, d, d_valid)
                if not ONE:
                    tl.debug_barrier()
            if ONE:
                tl.debug_barrier()
        rows, valid, both, delta, v, delta_a = visit(
            dt, bias, routes, resets, tile, b, k, d, d_valid, length, channels, K, T, SOFTPLUS
        )
        u = per_visit_and_channel(x, rows, k, d, both, K, channels, X_PER_ROUTE)
        g_out = per_visit_and_channel(dy, rows, k, d, both, K, channels, DY_PER_ROUTE)
        du = delta * u
        to_du = tl.zeros((T, BD), tl.float32)
        to_delta = tl.zeros((T, BD), tl.float32)
        for n in range(0, N):
            before = tl.load(own + ((tile - save * M) * N + n) * channels + d, mask=d_valid, other=0.0)
            after = carry if ONE else tl.load(carries + base + n * channels + d, mask=d_valid, other=0.0)
            rate = first_rate if ONE else per_state(A, k, n, d, d_valid, channels, N)
            b_n = per_visit(B, rows, k, n, valid, K, N)
            c_n = per_visit(C, rows, k, n, valid, K, N)
            a = tl.exp2(delta_a * (rate * LOG2_E)[None, :])
            added = du * b_n[:, None]
            h = states_of(a, added, before, t == 0)
            g = adjoints_of(a, g_out * c_n[:, None], after, t == T - 1)
            q = g * (h - added)  # h - added is a_l h_{l-1}
            to_du += g * b_n[:, None]
            to_delta += q * rate[None, :]
            if ONE:
                carry = row_of(a * g, t == 0)
                sum_rate += tl.sum(q * delta, 0)
            else:
                store_row(carries + base + n * channels, a * g, t == 0, d, d_valid)
                old = tl.load(dA + base + n * channels + d, mask=d_valid, other=0.0)
                tl.store(dA + base + n * channels + d, old + tl.sum(q * delta, 0), mask=d_valid)
            row = (sums + rows) * K * N + k * N + n
            tl.store(dB + row, tl.sum(g * du, 1), mask=valid)
            tl.store(dC + row, tl.sum(h * g_out, 1), mask=valid)
        to_x, to_dt = gradients_of_tile(to_du, to_delta, delta, v, u, g_out, skip, both, SOFTPLUS)
        out = (rows * K + k)[:, None] * channels + d[None, :]
        tl.store(dx + out, to_x, mask=both)
        tl.store(ddt + out, to_dt, mask=both)
        sum_bias += tl.sum(to_dt, 0)
        sum_skip += tl.sum(g_out * u, 0)
        if not ONE:
            tl.debug_barrier()
    row = (bk * spans + span) * channels + d
    if ONE:
        tl.store(dA + row, sum_rate, mask=d_valid)
    tl.store(dD + row, sum_skip, mask=d_valid)
    tl.store(ddt_bias + row, sum_bias, mask=d_valid)


scan_backward = triton.jit(_backward, do_not_specialize=NO_HINTS)
scan_backward_one = triton.jit(_backward)
