"""The selective scan in Triton, for CUDA and ROCm devices, in the native layout.

A program owns a block of channels and a span of positions, which it walks in tiles of T, as kernels/README.md derives.
With one state per channel (ONE) state, adjoint and the sum for A stay in registers from tile to tile. Sums over
channels (dB, dC) and positions (dA, dD, ddt_bias) go to partial buffers, added in fixed order: the same bits always.
A is read as (K, N, channels), so that neighbouring lanes read neighbouring numbers.
"""

import triton
import triton.language as tl

from medmamba.kernels.scan.triton_tile import (
    INFINITY,
    LOG2_E,
    decay,
    per_channel,
    per_state,
    per_visit_and_channel,
    program,
    steps,
    sum_of_steps,
    visits,
)

# The compiler knows nothing about the divisibility of sizes: it would widen loads to several channels per lane, which
# takes registers for their alignment. 64 channels are two rows of 128 bytes anyhow.
NO_HINTS = ("length", "channels", "N", "K", "span_saves", "saves", "spans", "blocks")


def _forward(
    x, dt, A, B, C, D, dt_bias, routes, resets, span_states, saved_states, sum_dt, y,
    length, channels, N, K, span_saves, saves, spans, blocks,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, X_PER_ROUTE: tl.constexpr,
    KEEP_OUTPUT: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """y: (b, l, k, d) float32. span_states: (b, k, spans, n, d) float32, the state at a span's start, here turned into
    that at its end; no other program touches it. saved_states: (b, k, saves, n, d), the state before every M tiles.
    sum_dt: (b, k, spans, d). If not KEEP_OUTPUT, the spans start from zero, and y and saved_states are not written."""
    if ONE:
        N = 1
    bk, b, k, _block, d, d_valid = program(K, channels, blocks, BD)
    span = tl.program_id(1)
    bias = per_channel(dt_bias, k, d, d_valid, channels)
    skip = per_channel(D, k, d, d_valid, channels)
    total = tl.zeros((BD,), tl.float32)
    state = tl.zeros((BD,), tl.float32)
    first_rate = per_state(A, k, 0, d, d_valid, channels, N)
    own = span_states + (bk * spans + span) * N * channels + d
    if ONE and KEEP_OUTPUT:
        state = tl.load(own, mask=d_valid, other=0.0)
    if not ONE:
        if not KEEP_OUTPUT:
            for n in range(0, N):
                tl.store(own + n * channels, state, mask=d_valid)
        tl.debug_barrier()
    for tile in range(span * span_saves * M, tl.minimum((span + 1) * span_saves, saves) * M):
        save = tile // M
        rows, inside, keep = visits(routes, resets, tile, b, k, length, K, T)
        v = per_visit_and_channel(dt, rows, inside, k, d, d_valid, K, channels, True, T)
        delta = steps(v, bias, inside, d_valid, SOFTPLUS, T)
        u = per_visit_and_channel(x, rows, inside, k, d, d_valid, K, channels, X_PER_ROUTE, T)
        if not KEEP_OUTPUT:
            total += sum_of_steps(delta, keep, resets, T)
        du = ()
        out = ()
        for i in tl.static_range(T):
            du = du + (delta[i] * u[i],)
            out = out + (u[i] * skip,)
        if KEEP_OUTPUT and tile == save * M:
            for n in range(0, N):
                h = state if ONE else tl.load(own + n * channels, mask=d_valid, other=0.0)
                tl.store(saved_states + ((bk * saves + save) * N + n) * channels + d, h, mask=d_valid)
        for n in tl.range(0, N, loop_unroll_factor=1 if ONE else 2):
            h = state if ONE else tl.load(own + n * channels, mask=d_valid, other=0.0)
            rate2 = (first_rate if ONE else per_state(A, k, n, d, d_valid, channels, N)) * LOG2_E
            seen = ()
            for i in tl.static_range(T):
                at = (rows[i] * K + k) * N + n
                h = decay(delta[i], rate2, keep[i], resets) * h + du[i] * tl.load(B + at).to(tl.float32)
                if KEEP_OUTPUT:
                    seen = seen + (out[i] + h * tl.load(C + at).to(tl.float32),)
            if KEEP_OUTPUT:
                out = seen
            if ONE:
                state = h
            else:
                tl.store(own + n * channels, h, mask=d_valid)
        if not ONE:
            tl.debug_barrier()
        if KEEP_OUTPUT:
            for i in tl.static_range(T):
                tl.store(y + (rows[i] * K + k) * channels + d, out[i], mask=d_valid & inside[i])
    if ONE:
        tl.store(own, state, mask=d_valid)
    if not KEEP_OUTPUT:
        tl.store(sum_dt + (bk * spans + span) * channels + d, total, mask=d_valid)


scan_forward = triton.jit(_forward, do_not_specialize=NO_HINTS)
scan_forward_one = triton.jit(_forward)  # hints are welcome: four channels of a lane are read as one vector


@triton.jit(do_not_specialize=NO_HINTS)
def pass_spans(
    A, sum_dt, values, entering, leaving, channels, N, K, spans, blocks,
    BD: tl.constexpr, ADJOINT: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Turns what spans add to the state, each from zero, into the true state at their starts, in place; or, from the
    last to the first, what they add to the adjoint into what enters each at its end.

    values: (b, k, spans, n, d). entering, leaving: (b, k, d, n), what enters the first span and leaves the last in the
    direction of the way. The decay over a whole span is exp2(A * sum of the steps). TOGETHER spans are loaded before
    the first of them is stored: the chain then waits for memory once for all of them."""
    bk, _b, k, _block, d, d_valid = program(K, channels, blocks, BD)
    n = tl.program_id(1)
    rate = per_state(A, k, n, d, d_valid, channels, N) * LOG2_E
    h = tl.zeros((BD,), tl.float32)
    if entering is not None:
        h = tl.load(entering + (bk * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32)
    for first in range(0, spans, TOGETHER):
        here, local, passed = (), (), ()
        for i in tl.static_range(TOGETHER):
            span = spans - 1 - first - i if ADJOINT else first + i
            valid = d_valid & (first + i < spans)
            here = here + (((bk * spans + span) * N + n) * channels + d,)
            local = local + (tl.load(values + here[i], mask=valid, other=0.0),)
            total = tl.load(sum_dt + (bk * spans + span) * channels + d, mask=valid, other=0.0)
            passed = passed + (tl.where(total == INFINITY, 0.0, tl.exp2(rate * total)),)
        for i in tl.static_range(TOGETHER):
            tl.store(values + here[i], h, mask=d_valid & (first + i < spans))
            h = passed[i] * h + local[i]
    if leaving is not None:
        tl.store(leaving + (bk * channels + d) * N + n, h, mask=d_valid)


@triton.jit(do_not_specialize=NO_HINTS)
def adjoint_spans(
    dt, A, C, dt_bias, routes, resets, dy, carries, sum_dt,
    length, channels, N, K, span_saves, saves, spans, blocks,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, DY_PER_ROUTE: tl.constexpr,
):  # fmt: skip
    """What each span adds to the adjoint that leaves it at its start, a_first g_first: carries (b, k, spans, n, d)."""
    bk, b, k, _block, d, d_valid = program(K, channels, blocks, BD)
    span = tl.program_id(1)
    bias = per_channel(dt_bias, k, d, d_valid, channels)
    own = carries + (bk * spans + span) * N * channels + d
    total = tl.zeros((BD,), tl.float32)
    for n in range(0, N):
        tl.store(own + n * channels, total, mask=d_valid)
    last_tile = tl.minimum((span + 1) * span_saves, saves) * M - 1
    for back in range(0, last_tile - span * span_saves * M + 1):
        rows, inside, keep = visits(routes, resets, last_tile - back, b, k, length, K, T)
        v = per_visit_and_channel(dt, rows, inside, k, d, d_valid, K, channels, True, T)
        delta = steps(v, bias, inside, d_valid, SOFTPLUS, T)
        g_out = per_visit_and_channel(dy, rows, inside, k, d, d_valid, K, channels, DY_PER_ROUTE, T)
        total += sum_of_steps(delta, keep, resets, T)
        for n in tl.range(0, N, loop_unroll_factor=4):
            G = tl.load(own + n * channels, mask=d_valid, other=0.0)
            rate2 = per_state(A, k, n, d, d_valid, channels, N) * LOG2_E
            for i in tl.static_range(T - 1, -1, -1):
                c = tl.load(C + (rows[i] * K + k) * N + n).to(tl.float32)
                G = decay(delta[i], rate2, keep[i], resets) * (g_out[i] * c + G)
            tl.store(own + n * channels, G, mask=d_valid)
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
    bk, b, k, block, d, d_valid = program(K, channels, blocks, BD)
    span = tl.program_id(1)
    base = (bk * spans + span) * N * channels + d
    zero = tl.zeros((BD,), tl.float32)
    carry = zero
    first_rate = per_state(A, k, 0, d, d_valid, channels, N)
    if ONE:
        carry = tl.load(carries + base, mask=d_valid, other=0.0)
    else:
        for n in range(0, N):
            tl.store(dA + base + n * channels, zero, mask=d_valid)
    sum_rate = zero
    sum_bias = zero
    sum_skip = zero
    last_tile = tl.minimum((span + 1) * span_saves, saves) * M - 1
    sums = block.to(tl.int64) * (tl.num_programs(0) // (blocks * K)) * length
    own = scratch + (bk * spans + span) * M * N * channels + d  # strides are sizes, not constants: see NO_HINTS
    for back in range(0, last_tile - span * span_saves * M + 1):
        tile = last_tile - back
        save = tile // M
        if tile == save * M + M - 1:
            # Entering M tiles from behind: find the state before each of them from the saved one.
            for n in range(0, N):
                state = tl.load(saved_states + ((bk * saves + save) * N + n) * channels + d, mask=d_valid, other=0.0)
                tl.store(own + n * channels, state, mask=d_valid)
            tl.debug_barrier()
            for forth in range(0, M - 1):
                rows, inside, keep = visits(routes, resets, save * M + forth, b, k, length, K, T)
                v = per_visit_and_channel(dt, rows, inside, k, d, d_valid, K, channels, True, T)
                delta = steps(v, per_channel(dt_bias, k, d, d_valid, channels), inside, d_valid, SOFTPLUS, T)
                u = per_visit_and_channel(x, rows, inside, k, d, d_valid, K, channels, X_PER_ROUTE, T)
                du = ()
                for i in tl.static_range(T):
                    du = du + (delta[i] * u[i],)
                for n in tl.range(0, N, loop_unroll_factor=1 if ONE else 2):
                    h = tl.load(own + (forth * N + n) * channels, mask=d_valid, other=0.0)
                    rate2 = (first_rate if ONE else per_state(A, k, n, d, d_valid, channels, N)) * LOG2_E
                    for i in tl.static_range(T):
                        b_n = tl.load(B + (rows[i] * K + k) * N + n).to(tl.float32)
                        h = decay(delta[i], rate2, keep[i], resets) * h + du[i] * b_n
                    tl.store(own + ((forth + 1) * N + n) * channels, h, mask=d_valid)
                tl.debug_barrier()
        rows, inside, keep = visits(routes, resets, tile, b, k, length, K, T)
        v = per_visit_and_channel(dt, rows, inside, k, d, d_valid, K, channels, True, T)
        delta = steps(v, per_channel(dt_bias, k, d, d_valid, channels), inside, d_valid, SOFTPLUS, T)
        u = per_visit_and_channel(x, rows, inside, k, d, d_valid, K, channels, X_PER_ROUTE, T)
        g_out = per_visit_and_channel(dy, rows, inside, k, d, d_valid, K, channels, DY_PER_ROUTE, T)
        du = ()
        to_du = ()
        to_delta = ()
        for i in tl.static_range(T):
            du = du + (delta[i] * u[i],)
            to_du = to_du + (zero,)
            to_delta = to_delta + (zero,)
        for n in range(0, N):
            h = tl.load(own + ((tile - save * M) * N + n) * channels, mask=d_valid, other=0.0)
            G = carry if ONE else tl.load(carries + base + n * channels, mask=d_valid, other=0.0)
            rate = first_rate if ONE else per_state(A, k, n, d, d_valid, channels, N)
            decays, states = (), (h,)  # the state before the tile, and after each visit
            for i in tl.static_range(T):
                a = decay(delta[i], rate * LOG2_E, keep[i], resets)
                h = a * h + du[i] * tl.load(B + (rows[i] * K + k) * N + n).to(tl.float32)
                decays, states = decays + (a,), states + (h,)
            of_rate = zero
            later_du, later_delta = (), ()  # of the visits after, the last one at the end
            for i in tl.static_range(T - 1, -1, -1):
                at = (rows[i] * K + k) * N + n
                g = g_out[i] * tl.load(C + at).to(tl.float32) + G
                G = decays[i] * g
                q = G * states[i]
                later_du = (to_du[i] + g * tl.load(B + at).to(tl.float32),) + later_du
                later_delta = (to_delta[i] + q * rate,) + later_delta
                of_rate += q * delta[i]
                out = sums * K * N + at
                tl.store(dB + out, tl.sum(g * du[i], 0), mask=inside[i])
                tl.store(dC + out, tl.sum(states[i + 1] * g_out[i], 0), mask=inside[i])
            to_du = later_du
            to_delta = later_delta
            if ONE:
                carry = G
                sum_rate += of_rate
            else:
                tl.store(carries + base + n * channels, G, mask=d_valid)
                old = tl.load(dA + base + n * channels, mask=d_valid, other=0.0)
                tl.store(dA + base + n * channels, old + of_rate, mask=d_valid)
        bias = per_channel(dt_bias, k, d, d_valid, channels)
        skip = per_channel(D, k, d, d_valid, channels)
        for i in tl.static_range(T):
            both = d_valid & inside[i]
            out = (rows[i] * K + k) * channels + d
            # x and dt are read again, which takes fewer registers than keeping them
            x_row = rows[i] * K + k if X_PER_ROUTE else rows[i]
            u_i = tl.load(x + x_row * channels + d, mask=both, other=0.0).to(tl.float32)
            to_dt = to_du[i] * u_i + to_delta[i]
            if SOFTPLUS:
                again = tl.load(dt + out, mask=both, other=0.0).to(tl.float32) + bias
                to_dt = to_dt / (1.0 + tl.exp2(-again * LOG2_E))
            to_dt = tl.where(both, to_dt, 0.0)
            tl.store(dx + out, to_du[i] * delta[i] + g_out[i] * skip, mask=both)
            tl.store(ddt + out, to_dt, mask=both)
            sum_bias += to_dt
            sum_skip += g_out[i] * u_i
        if not ONE:
            tl.debug_barrier()
    row = (bk * spans + span) * channels + d
    if ONE:
        tl.store(dA + row, sum_rate, mask=d_valid)
    tl.store(dD + row, sum_skip, mask=d_valid)
    tl.store(ddt_bias + row, sum_bias, mask=d_valid)


scan_backward = triton.jit(_backward, do_not_specialize=NO_HINTS)
scan_backward_one = triton.jit(_backward)
