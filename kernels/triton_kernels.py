"""The selective scan in Triton, for CUDA and ROCm devices, in the native layout.

A program owns a block of channels (one lane per channel, so that following a route is reading whole rows) and a span of
positions, which it walks in tiles of T. For one state n at a time a tile is one first-order recurrence per lane, solved
by an associative scan whose elements all lie in the registers of that lane: T positions are in flight at once, nothing
is exchanged between lanes, and d_state = 1 is simply a loop of one. The state before every M tiles is kept: the
backward pass starts from it and finds those in between again. B and C are read once per program.

If batch * routes * channels do not fill the device, the route is cut into spans that run in parallel: a first pass
finds what each span adds to the state (`KEEP_OUTPUT` false), `pass_spans` chains the spans, the second pass has the
true states.

Backward: h from the saved state by the same scan, the adjoint g_l = a_{l+1} g_{l+1} + C_l dy_l by a reverse scan. Sums
over channels (dB, dC) and over positions (dA, dD, dbias) go to partial buffers that are added in fixed order
afterwards: no atomics, the same bits every time. Offsets are 64 bit.
"""

import triton
import triton.language as tl

ENDLESS = tl.constexpr(1e30)
LOG2_E = tl.constexpr(1.4426950408889634)
# Nothing is told about the divisibility of sizes: the compiler would widen loads to several channels per lane and
# spread the positions of a tile over lanes, and the scan would leave the registers. 32 channels are 128 bytes anyhow.
NO_HINTS = ("length", "channels", "N", "K", "span_saves", "saves", "spans", "blocks")


@triton.jit
def _combine(a_left, b_left, a_right, b_right):
    return a_left * a_right, b_left * a_right + b_right


@triton.jit
def _combine_adjoint(g_right, m_right, a_right, g_left, m_left, a_left):
    # g_l = C_l dy_l + a_{l+1} g_{l+1}: a run of positions is (its g if nothing enters, the factor of what enters, its
    # first a), so that the decay of the next position is met without a shifted copy
    m = m_left * a_right
    return g_left + m * g_right, m * m_right, a_left


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
def _step(dt, bias, rows, row_valid, d, d_valid, K, channels, SOFTPLUS: tl.constexpr):
    """Step sizes (T, BD) of the given rows, 0 beyond the end: decay 1, input 0."""
    valid = row_valid[:, None] & d_valid[None, :]
    v = tl.load(dt + rows[:, None] * (K * channels) + d[None, :], mask=valid, other=0.0).to(tl.float32) + bias[None, :]
    step = _softplus(v) if SOFTPLUS else v
    return tl.where(valid, step, 0.0), v


@triton.jit
def _lapse(goes_on, visits, row_valid, step, HAS_SEGMENTS: tl.constexpr):
    """The steps (T, BD) by which the state decays: endless where a new segment starts, nothing is left of it."""
    if HAS_SEGMENTS:
        same = tl.load(goes_on + visits, mask=row_valid, other=1)
        step = tl.where((same != 0)[:, None], step, ENDLESS)
    return step


@triton.jit(do_not_specialize=NO_HINTS)
def scan_forward(
    x, dt, A, B, C, D, dt_bias, order, goes_on, running, states, sum_dt, y,
    length, channels, N, K, span_saves, saves, spans,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_SEGMENTS: tl.constexpr, X_PER_ROUTE: tl.constexpr,
    KEEP_OUTPUT: tl.constexpr,
):  # fmt: skip
    """running: (b, k, spans, n, d) float32, the state at a span's start, here turned into that at its end; no other
    program touches it. states: (b, k, saves, n, d), the state before every M tiles. y: (b, l, k, d) float32.
    sum_dt: (b, k, spans, d). If not KEEP_OUTPUT, the spans start from zero, and only running and sum_dt are written."""
    bk = tl.program_id(2).to(tl.int64)
    b = bk // K
    k = bk % K
    span = tl.program_id(1)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    d_valid = d < channels
    t = tl.arange(0, T)
    first = t == 0
    end = t == T - 1
    bias = tl.zeros((BD,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(dt_bias + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    skip = tl.zeros((BD,), tl.float32)
    if HAS_D:
        skip = tl.load(D + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    total = tl.zeros((BD,), tl.float32)
    own = (bk * spans + span) * N * channels
    if not KEEP_OUTPUT:
        for n in range(0, N):
            tl.store(running + own + n * channels + d, tl.zeros((BD,), tl.float32), mask=d_valid)
    tl.debug_barrier()
    for tile in range(span * span_saves * M, tl.minimum((span + 1) * span_saves, saves) * M):
        save = tile // M
        at = tile * T + t
        valid = at < length
        place = at.to(tl.int64)
        if HAS_ORDER:
            place = tl.load(order + k * length + at, mask=valid, other=0).to(tl.int64)
        rows = b * length + place
        both = valid[:, None] & d_valid[None, :]
        delta, _v = _step(dt + k * channels, bias, rows, valid, d, d_valid, K, channels, SOFTPLUS)
        lapse = _lapse(goes_on, (b * length + at) * K + k, valid, delta, HAS_SEGMENTS)
        if X_PER_ROUTE:
            u = tl.load(x + (rows * K + k)[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        else:
            u = tl.load(x + rows[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        du = delta * u
        out = u * skip[None, :]
        total += tl.sum(lapse, 0)
        for n in tl.range(0, N, loop_unroll_factor=4):
            h0 = tl.load(running + own + n * channels + d, mask=d_valid, other=0.0)
            if KEEP_OUTPUT:
                saved = ((bk * saves + save) * N + n) * channels
                tl.store(states + saved + d, h0, mask=d_valid & (tile == save * M))
            a_n = tl.load(A + (k * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32) * LOG2_E
            b_n = tl.load(B + (rows * K + k) * N + n, mask=valid, other=0.0).to(tl.float32)
            a = tl.exp2(lapse * a_n[None, :])
            added = du * b_n[:, None]
            added = tl.where(first[:, None], added + a * h0[None, :], added)
            _a, h = tl.associative_scan((a, added), 0, _combine)
            if KEEP_OUTPUT:
                c_n = tl.load(C + (rows * K + k) * N + n, mask=valid, other=0.0).to(tl.float32)
                out += h * c_n[:, None]
            tl.store(
                running + own + n * channels + tl.zeros((T,), tl.int64)[:, None] + d[None, :],
                h, mask=end[:, None] & d_valid[None, :],
            )  # fmt: skip
        if KEEP_OUTPUT:
            tl.store(y + (rows * K + k)[:, None] * channels + d[None, :], out, mask=both)
        tl.debug_barrier()
    if not KEEP_OUTPUT:
        tl.store(sum_dt + (bk * spans + span) * channels + d, total, mask=d_valid)


@triton.jit
def scan_forward_one(
    x, dt, A, B, C, D, dt_bias, order, goes_on, running, states, sum_dt, y,
    length, channels, N, K, span_saves, saves, spans,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_SEGMENTS: tl.constexpr, X_PER_ROUTE: tl.constexpr,
    KEEP_OUTPUT: tl.constexpr,
):  # fmt: skip
    """`scan_forward` for one state per channel, where memory is the limit and not arithmetic.

    The state stays in registers from tile to tile, so nothing is waited for but the rows; a lane has four channels and
    reads them as one vector, which is why sizes may be told to the compiler here (128 channels take every lane of a
    warp, so the positions of a tile still lie in a lane's registers)."""
    bk = tl.program_id(2).to(tl.int64)
    b = bk // K
    k = bk % K
    span = tl.program_id(1)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    d_valid = d < channels
    t = tl.arange(0, T)
    bias = tl.zeros((BD,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(dt_bias + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    skip = tl.zeros((BD,), tl.float32)
    if HAS_D:
        skip = tl.load(D + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    rate = tl.load(A + k * channels + d, mask=d_valid, other=0.0).to(tl.float32) * LOG2_E
    own = (bk * spans + span) * channels + d
    total = tl.zeros((BD,), tl.float32)
    state = tl.zeros((BD,), tl.float32)
    if KEEP_OUTPUT:
        state = tl.load(running + own, mask=d_valid, other=0.0)
    for tile in range(span * span_saves * M, tl.minimum((span + 1) * span_saves, saves) * M):
        if KEEP_OUTPUT:
            save = tile // M
            tl.store(states + (bk * saves + save) * channels + d, state, mask=d_valid & (tile == save * M))
        at = tile * T + t
        valid = at < length
        place = at.to(tl.int64)
        if HAS_ORDER:
            place = tl.load(order + k * length + at, mask=valid, other=0).to(tl.int64)
        rows = b * length + place
        both = valid[:, None] & d_valid[None, :]
        delta, _v = _step(dt + k * channels, bias, rows, valid, d, d_valid, K, channels, SOFTPLUS)
        lapse = _lapse(goes_on, (b * length + at) * K + k, valid, delta, HAS_SEGMENTS)
        if X_PER_ROUTE:
            u = tl.load(x + (rows * K + k)[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        else:
            u = tl.load(x + rows[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        total += tl.sum(lapse, 0)
        added = delta * u * tl.load(B + rows * K + k, mask=valid, other=0.0).to(tl.float32)[:, None]
        a = tl.exp2(lapse * rate[None, :])
        added = tl.where((t == 0)[:, None], added + a * state[None, :], added)
        _a, h = tl.associative_scan((a, added), 0, _combine)
        state = tl.sum(tl.where((t == T - 1)[:, None], h, 0.0), 0)
        if KEEP_OUTPUT:
            seen = tl.load(C + rows * K + k, mask=valid, other=0.0).to(tl.float32)
            out = u * skip[None, :] + h * seen[:, None]
            tl.store(y + (rows * K + k)[:, None] * channels + d[None, :], out, mask=both)
    tl.store(running + own, state, mask=d_valid)
    if not KEEP_OUTPUT:
        tl.store(sum_dt + (bk * spans + span) * channels + d, total, mask=d_valid)


@triton.jit(do_not_specialize=NO_HINTS)
def pass_spans(
    A, sum_dt, running, initial, channels, N, K, spans,
    BD: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Turns what spans add, each from zero, into the true state at their starts, in place.

    The decay over a whole span is exp2(A * sum of the steps)."""
    bk = tl.program_id(2).to(tl.int64)
    k = bk % K
    n = tl.program_id(1)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    d_valid = d < channels
    a_n = tl.load(A + (k * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32) * LOG2_E
    h = tl.zeros((BD,), tl.float32)
    if HAS_INITIAL:
        h = tl.load(initial + (bk * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32)
    for span in range(0, spans):
        row = ((bk * spans + span) * N + n) * channels
        local = tl.load(running + row + d, mask=d_valid, other=0.0)
        tl.store(running + row + d, h, mask=d_valid)
        decay = tl.exp2(a_n * tl.load(sum_dt + (bk * spans + span) * channels + d, mask=d_valid, other=0.0))
        h = decay * h + local


@triton.jit(do_not_specialize=NO_HINTS)
def adjoint_spans(
    dt, A, C, dt_bias, order, goes_on, dy, carries, sum_dt,
    length, channels, N, K, span_saves, saves, spans,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_ORDER: tl.constexpr, HAS_SEGMENTS: tl.constexpr, DY_PER_ROUTE: tl.constexpr,
):  # fmt: skip
    """What each span adds to the adjoint that leaves it at its start, a_first g_first: carries (b, k, spans, n, d)."""
    bk = tl.program_id(2).to(tl.int64)
    b = bk // K
    k = bk % K
    span = tl.program_id(1)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    d_valid = d < channels
    t = tl.arange(0, T)
    begin = t == 0
    bias = tl.zeros((BD,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(dt_bias + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    base = (bk * spans + span) * N * channels
    for n in range(0, N):
        tl.store(carries + base + n * channels + d, tl.zeros((BD,), tl.float32), mask=d_valid)
    tl.debug_barrier()
    total = tl.zeros((BD,), tl.float32)
    last_tile = tl.minimum((span + 1) * span_saves, saves) * M - 1
    for back in range(0, last_tile - span * span_saves * M + 1):
        at = (last_tile - back) * T + t
        valid = at < length
        place = at.to(tl.int64)
        if HAS_ORDER:
            place = tl.load(order + k * length + at, mask=valid, other=0).to(tl.int64)
        rows = b * length + place
        both = valid[:, None] & d_valid[None, :]
        delta, _v = _step(dt + k * channels, bias, rows, valid, d, d_valid, K, channels, SOFTPLUS)
        lapse = _lapse(goes_on, (b * length + at) * K + k, valid, delta, HAS_SEGMENTS)
        if DY_PER_ROUTE:
            g_out = tl.load(dy + (rows * K + k)[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        else:
            g_out = tl.load(dy + rows[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        total += tl.sum(lapse, 0)
        for n in range(0, N):
            carry = tl.load(carries + base + n * channels + d, mask=d_valid, other=0.0)
            a_n = tl.load(A + (k * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32) * LOG2_E
            c_n = tl.load(C + (rows * K + k) * N + n, mask=valid, other=0.0).to(tl.float32)
            # G_l = a_l (G_{l+1} + C_l dy_l), so the element at l is (a_l, a_l C_l dy_l)
            a = tl.exp2(lapse * a_n[None, :])
            added = a * (g_out * c_n[:, None] + tl.where((t == T - 1)[:, None], carry[None, :], 0.0))
            _a, G = tl.associative_scan((a, added), 0, _combine, reverse=True)
            tl.store(
                carries + base + n * channels + tl.zeros((T,), tl.int64)[:, None] + d[None, :],
                G, mask=begin[:, None] & d_valid[None, :],
            )  # fmt: skip
        tl.debug_barrier()
    tl.store(sum_dt + (bk * spans + span) * channels + d, total, mask=d_valid)


@triton.jit(do_not_specialize=NO_HINTS)
def pass_adjoints(
    A, sum_dt, carries, dlast, dinitial, channels, N, K, spans,
    BD: tl.constexpr, HAS_DLAST: tl.constexpr, HAS_DINITIAL: tl.constexpr,
):  # fmt: skip
    """Turns what spans add into what enters each at its end; what leaves the first is the initial state's gradient."""
    bk = tl.program_id(2).to(tl.int64)
    k = bk % K
    n = tl.program_id(1)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    d_valid = d < channels
    a_n = tl.load(A + (k * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32) * LOG2_E
    G = tl.zeros((BD,), tl.float32)
    if HAS_DLAST:
        G = tl.load(dlast + (bk * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32)
    for back in range(0, spans):
        span = spans - 1 - back
        row = ((bk * spans + span) * N + n) * channels
        local = tl.load(carries + row + d, mask=d_valid, other=0.0)
        tl.store(carries + row + d, G, mask=d_valid)
        decay = tl.exp2(a_n * tl.load(sum_dt + (bk * spans + span) * channels + d, mask=d_valid, other=0.0))
        G = decay * G + local
    if HAS_DINITIAL:
        tl.store(dinitial + (bk * channels + d) * N + n, G, mask=d_valid)


@triton.jit(do_not_specialize=NO_HINTS)
def scan_backward(
    x, dt, A, B, C, D, dt_bias, order, goes_on, states, carries, dy,
    dx, ddt, dA, dB, dC, dD, dbias, scratch,
    length, channels, N, K, span_saves, saves, spans, blocks,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_SEGMENTS: tl.constexpr, X_PER_ROUTE: tl.constexpr,
    DY_PER_ROUTE: tl.constexpr,
):  # fmt: skip
    """Gradients: dx, ddt (b, l, k, d); dA (b, k, spans, n, d) and dD, dbias (b, k, spans, d), to be summed;
    dB, dC (blocks, b, l, k, n), to be summed over the channel blocks. carries: (b, k, spans, n, d).
    scratch: (b, k, spans, M, n, d)."""
    bk = tl.program_id(2).to(tl.int64)
    b = bk // K
    k = bk % K
    span = tl.program_id(1)
    block = tl.program_id(0)
    d = block * BD + tl.arange(0, BD)
    d_valid = d < channels
    t = tl.arange(0, T)
    begin = t == 0
    bias = tl.zeros((BD,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(dt_bias + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    skip = tl.zeros((BD,), tl.float32)
    if HAS_D:
        skip = tl.load(D + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    base = (bk * spans + span) * N * channels
    for n in range(0, N):
        tl.store(dA + base + n * channels + d, tl.zeros((BD,), tl.float32), mask=d_valid)
    tl.debug_barrier()
    sum_bias = tl.zeros((BD,), tl.float32)
    sum_skip = tl.zeros((BD,), tl.float32)
    last_tile = tl.minimum((span + 1) * span_saves, saves) * M - 1
    sums = block.to(tl.int64) * (tl.num_programs(2) // K) * length
    # Strides of the scratch are sizes, not constants: see NO_HINTS.
    program = (bk * spans + span) * M * N * channels
    for back in range(0, last_tile - span * span_saves * M + 1):
        tile = last_tile - back
        save = tile // M
        if tile == save * M + M - 1:
            # Entering M tiles from behind: find the state before each of them from the saved one.
            for forth in range(0, M):
                at = (save * M + forth) * T + t
                valid = at < length
                place = at.to(tl.int64)
                if HAS_ORDER:
                    place = tl.load(order + k * length + at, mask=valid, other=0).to(tl.int64)
                rows = b * length + place
                both = valid[:, None] & d_valid[None, :]
                delta, v = _step(dt + k * channels, bias, rows, valid, d, d_valid, K, channels, SOFTPLUS)
                lapse = _lapse(goes_on, (b * length + at) * K + k, valid, delta, HAS_SEGMENTS)
                if X_PER_ROUTE:
                    u = tl.load(x + (rows * K + k)[:, None] * channels + d[None, :], mask=both, other=0.0)
                else:
                    u = tl.load(x + rows[:, None] * channels + d[None, :], mask=both, other=0.0)
                du = delta * u.to(tl.float32)
                for n in range(0, N):
                    if forth == 0:
                        saved = ((bk * saves + save) * N + n) * channels
                        h0 = tl.load(states + saved + d, mask=d_valid, other=0.0)
                        tl.store(scratch + program + n * channels + d, h0, mask=d_valid)
                    else:
                        at_h = program + (forth * N + n) * channels
                        h0 = tl.load(scratch + at_h + d, mask=d_valid, other=0.0)
                    if forth < M - 1:
                        a_n = tl.load(A + (k * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32) * LOG2_E
                        b_n = tl.load(B + (rows * K + k) * N + n, mask=valid, other=0.0).to(tl.float32)
                        a = tl.exp2(lapse * a_n[None, :])
                        added = du * b_n[:, None]
                        added = tl.where(begin[:, None], added + a * h0[None, :], added)
                        _a, h = tl.associative_scan((a, added), 0, _combine)
                        tl.store(
                            scratch + program + ((forth + 1) * N + n) * channels
                            + tl.zeros((T,), tl.int64)[:, None] + d[None, :],
                            h, mask=(t == T - 1)[:, None] & d_valid[None, :],
                        )  # fmt: skip
                tl.debug_barrier()
        at = tile * T + t
        valid = at < length
        place = at.to(tl.int64)
        if HAS_ORDER:
            place = tl.load(order + k * length + at, mask=valid, other=0).to(tl.int64)
        rows = b * length + place
        both = valid[:, None] & d_valid[None, :]
        delta, v = _step(dt + k * channels, bias, rows, valid, d, d_valid, K, channels, SOFTPLUS)
        lapse = _lapse(goes_on, (b * length + at) * K + k, valid, delta, HAS_SEGMENTS)
        if X_PER_ROUTE:
            u = tl.load(x + (rows * K + k)[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        else:
            u = tl.load(x + rows[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        if DY_PER_ROUTE:
            g_out = tl.load(dy + (rows * K + k)[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        else:
            g_out = tl.load(dy + rows[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        du = delta * u
        to_du = tl.zeros((T, BD), tl.float32)
        to_delta = tl.zeros((T, BD), tl.float32)
        for n in range(0, N):
            at_h = program + ((tile - save * M) * N + n) * channels
            h0 = tl.load(scratch + at_h + d, mask=d_valid, other=0.0)
            carry = tl.load(carries + base + n * channels + d, mask=d_valid, other=0.0)
            a_n = tl.load(A + (k * channels + d) * N + n, mask=d_valid, other=0.0).to(tl.float32)
            b_n = tl.load(B + (rows * K + k) * N + n, mask=valid, other=0.0).to(tl.float32)
            c_n = tl.load(C + (rows * K + k) * N + n, mask=valid, other=0.0).to(tl.float32)
            a = tl.exp2(lapse * (a_n * LOG2_E)[None, :])
            added = du * b_n[:, None]
            _a, h = tl.associative_scan((a, tl.where(begin[:, None], added + a * h0[None, :], added)), 0, _combine)
            seen = g_out * c_n[:, None] + tl.where((t == T - 1)[:, None], carry[None, :], 0.0)
            g, _m, _b = tl.associative_scan(
                (seen, tl.full((T, BD), 1.0, tl.float32), a), 0, _combine_adjoint, reverse=True
            )
            tl.store(
                carries + base + n * channels + tl.zeros((T,), tl.int64)[:, None] + d[None, :],
                a * g, mask=begin[:, None] & d_valid[None, :],
            )  # fmt: skip
            q = g * (h - added)  # h - added is a_l h_{l-1}
            to_du += g * b_n[:, None]
            to_delta += q * a_n[None, :]
            old = tl.load(dA + base + n * channels + d, mask=d_valid, other=0.0)
            tl.store(dA + base + n * channels + d, old + tl.sum(q * delta, 0), mask=d_valid)
            row = (sums + rows) * K * N + k * N + n
            tl.store(dB + row, tl.sum(g * du, 1), mask=valid)
            tl.store(dC + row, tl.sum(h * g_out, 1), mask=valid)
        to_x = to_du * delta + g_out * skip[None, :]
        slope = tl.full((T, BD), 1.0, tl.float32)
        if SOFTPLUS:
            slope = 1.0 / (1.0 + tl.exp2(-v * LOG2_E))
        to_dt = tl.where(both, (to_du * u + to_delta) * slope, 0.0)
        out = (rows * K + k)[:, None] * channels + d[None, :]
        tl.store(dx + out, to_x, mask=both)
        tl.store(ddt + out, to_dt, mask=both)
        sum_bias += tl.sum(to_dt, 0)
        sum_skip += tl.sum(g_out * u, 0)
        tl.debug_barrier()
    row = (bk * spans + span) * channels + d
    tl.store(dD + row, sum_skip, mask=d_valid)
    tl.store(dbias + row, sum_bias, mask=d_valid)


@triton.jit
def scan_backward_one(
    x, dt, A, B, C, D, dt_bias, order, goes_on, states, carries, dy,
    dx, ddt, dA, dB, dC, dD, dbias, scratch,
    length, channels, N, K, span_saves, saves, spans, blocks,
    T: tl.constexpr, M: tl.constexpr, BD: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_SEGMENTS: tl.constexpr, X_PER_ROUTE: tl.constexpr,
    DY_PER_ROUTE: tl.constexpr,
):  # fmt: skip
    """`scan_backward` for one state per channel: state, adjoint and the sum for A stay in registers, see
    `scan_forward_one`."""
    bk = tl.program_id(2).to(tl.int64)
    b = bk // K
    k = bk % K
    span = tl.program_id(1)
    block = tl.program_id(0)
    d = block * BD + tl.arange(0, BD)
    d_valid = d < channels
    t = tl.arange(0, T)
    first = (t == 0)[:, None]
    last = (t == T - 1)[:, None]
    bias = tl.zeros((BD,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(dt_bias + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    skip = tl.zeros((BD,), tl.float32)
    if HAS_D:
        skip = tl.load(D + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    rate = tl.load(A + k * channels + d, mask=d_valid, other=0.0).to(tl.float32)
    own = (bk * spans + span) * channels + d
    carry = tl.load(carries + own, mask=d_valid, other=0.0)
    sum_rate = tl.zeros((BD,), tl.float32)
    sum_bias = tl.zeros((BD,), tl.float32)
    sum_skip = tl.zeros((BD,), tl.float32)
    last_tile = tl.minimum((span + 1) * span_saves, saves) * M - 1
    sums = block.to(tl.int64) * (tl.num_programs(2) // K) * length
    program = (bk * spans + span) * M * channels + d
    for back in range(0, last_tile - span * span_saves * M + 1):
        tile = last_tile - back
        save = tile // M
        if tile == save * M + M - 1:
            # Entering M tiles from behind: find the state before each of them from the saved one.
            state = tl.load(states + (bk * saves + save) * channels + d, mask=d_valid, other=0.0)
            tl.store(scratch + program, state, mask=d_valid)
            for forth in range(0, M - 1):
                at = (save * M + forth) * T + t
                valid = at < length
                place = at.to(tl.int64)
                if HAS_ORDER:
                    place = tl.load(order + k * length + at, mask=valid, other=0).to(tl.int64)
                rows = b * length + place
                both = valid[:, None] & d_valid[None, :]
                delta, v = _step(dt + k * channels, bias, rows, valid, d, d_valid, K, channels, SOFTPLUS)
                lapse = _lapse(goes_on, (b * length + at) * K + k, valid, delta, HAS_SEGMENTS)
                if X_PER_ROUTE:
                    u = tl.load(x + (rows * K + k)[:, None] * channels + d[None, :], mask=both, other=0.0)
                else:
                    u = tl.load(x + rows[:, None] * channels + d[None, :], mask=both, other=0.0)
                got = tl.load(B + rows * K + k, mask=valid, other=0.0).to(tl.float32)
                a = tl.exp2(lapse * (rate * LOG2_E)[None, :])
                added = delta * u.to(tl.float32) * got[:, None]
                _a, h = tl.associative_scan((a, tl.where(first, added + a * state[None, :], added)), 0, _combine)
                state = tl.sum(tl.where(last, h, 0.0), 0)
                tl.store(scratch + program + (forth + 1) * channels, state, mask=d_valid)
            tl.debug_barrier()
        at = tile * T + t
        valid = at < length
        place = at.to(tl.int64)
        if HAS_ORDER:
            place = tl.load(order + k * length + at, mask=valid, other=0).to(tl.int64)
        rows = b * length + place
        both = valid[:, None] & d_valid[None, :]
        delta, v = _step(dt + k * channels, bias, rows, valid, d, d_valid, K, channels, SOFTPLUS)
        lapse = _lapse(goes_on, (b * length + at) * K + k, valid, delta, HAS_SEGMENTS)
        if X_PER_ROUTE:
            u = tl.load(x + (rows * K + k)[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        else:
            u = tl.load(x + rows[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        if DY_PER_ROUTE:
            g_out = tl.load(dy + (rows * K + k)[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        else:
            g_out = tl.load(dy + rows[:, None] * channels + d[None, :], mask=both, other=0.0).to(tl.float32)
        got = tl.load(B + rows * K + k, mask=valid, other=0.0).to(tl.float32)
        seen = tl.load(C + rows * K + k, mask=valid, other=0.0).to(tl.float32)
        before = tl.load(scratch + program + (tile - save * M) * channels, mask=d_valid, other=0.0)
        a = tl.exp2(lapse * (rate * LOG2_E)[None, :])
        added = delta * u * got[:, None]
        _a, h = tl.associative_scan((a, tl.where(first, added + a * before[None, :], added)), 0, _combine)
        entering = g_out * seen[:, None] + tl.where(last, carry[None, :], 0.0)
        g, _m, _b = tl.associative_scan(
            (entering, tl.full((T, BD), 1.0, tl.float32), a), 0, _combine_adjoint, reverse=True
        )
        carry = tl.sum(tl.where(first, a * g, 0.0), 0)
        q = g * (h - added)  # h - added is a_l h_{l-1}
        sum_rate += tl.sum(q * delta, 0)
        tl.store(dB + (sums + rows) * K + k, tl.sum(g * delta * u, 1), mask=valid)
        tl.store(dC + (sums + rows) * K + k, tl.sum(h * g_out, 1), mask=valid)
        to_du = g * got[:, None]
        to_x = to_du * delta + g_out * skip[None, :]
        slope = tl.full((T, BD), 1.0, tl.float32)
        if SOFTPLUS:
            slope = 1.0 / (1.0 + tl.exp2(-v * LOG2_E))
        to_dt = tl.where(both, (to_du * u + q * rate[None, :]) * slope, 0.0)
        out = (rows * K + k)[:, None] * channels + d[None, :]
        tl.store(dx + out, to_x, mask=both)
        tl.store(ddt + out, to_dt, mask=both)
        sum_bias += tl.sum(to_dt, 0)
        sum_skip += tl.sum(g_out * u, 0)
    tl.store(dA + own, sum_rate, mask=d_valid)
    tl.store(dD + own, sum_skip, mask=d_valid)
    tl.store(dbias + own, sum_bias, mask=d_valid)
