"""State-space duality in Triton: the scan of Mamba-2 in chunks of matrix products, forward and backward.

States are rows of (b, chunks + 1, heads, p, n), row c before chunk c. Decays inside a chunk are exponentials of
differences of cumulative sums in float64; tables (Q, Q) of them are made from pairs of float32 (the sum, and what
rounding lost). A step of log decay under -200 is taken as -200: both are zero in float32, and nothing becomes infinite.
"""

import triton
import triton.language as tl

NO_HINTS = ("length", "heads", "groups", "chunks")
# Chunks that `ssd_pass` has in flight.
TILE = tl.constexpr(8)


@triton.jit
def _combine(a_left, b_left, a_right, b_right):
    """Two runs of positions as one: a product of decays, and what is added."""
    return a_left * a_right, b_left * a_right + b_right


@triton.jit
def _steps(A, b, h, at, length, heads):
    """Log decays (Q,), in float64, 0 beyond the end."""
    a = tl.load(A + (b * length + at) * heads + h, mask=at < length, other=0.0).to(tl.float64)
    return tl.where(a < -200.0, -200.0, a)  # not a number stays


@triton.jit
def _sums(A, b, h, at, length, heads):
    """Cumulative sums (Q,) and total of the chunk's log decays, in float64."""
    a = _steps(A, b, h, at, length, heads)
    return tl.cumsum(a, 0), tl.sum(a, 0)


@triton.jit
def _halves(sums):
    high = sums.to(tl.float32)
    return high, (sums - high.to(tl.float64)).to(tl.float32)


@triton.jit
def _decays(sums_to, sums_from, q):
    """Decay from position s to q, (q, s), by the sums up to both; 0 above the diagonal."""
    high_to, low_to = _halves(sums_to)
    high_from, low_from = _halves(sums_from)
    between = tl.exp((high_to[:, None] - high_from[None, :]) + (low_to[:, None] - low_from[None, :]))
    return tl.where(q[:, None] >= q[None, :], between, 0.0)


@triton.jit
def _rows(pointer, at, columns, b, h, length, heads, groups, width, PER_HEAD: tl.constexpr):
    """Positions `at` and some columns of (b, l, heads or groups, width), as float32, 0 beyond the end."""
    rows = (b * length + at) * heads + h
    if not PER_HEAD:
        rows = (b * length + at) * groups + h // (heads // groups)
    mask = ((at >= 0) & (at < length))[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _state(states, row, p, n, P, N):
    """(p, n) of a row of the states."""
    mask = (p < P)[:, None] & (n < N)[None, :]
    return tl.load(states + (row * P + p)[:, None] * N + n[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=NO_HINTS)
def ssd_states(
    V, A, M, states, length, heads, groups, P, N, chunks,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, ADJOINT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What chunk c adds: V = X, M = B into row c + 1; or to the adjoint: V = dY, M = C into row c."""
    chunk = tl.program_id(0)
    blocks = tl.cdiv(N, BN)
    p = tl.program_id(1) // blocks * BP + tl.arange(0, BP)
    n = tl.program_id(1) % blocks * BN + tl.arange(0, BN)
    b = (tl.program_id(2) // heads).to(tl.int64)
    h = tl.program_id(2) % heads
    at = chunk * Q + tl.arange(0, Q)
    sums, total = _sums(A, b, h, at, length, heads)
    weight = tl.exp((sums if ADJOINT else total - sums).to(tl.float32))
    v = _rows(V, at, p, b, h, length, heads, groups, P, True) * weight[:, None]
    m = _rows(M, at, n, b, h, length, heads, groups, N, False)
    row = (b * (chunks + 1) + chunk + (0 if ADJOINT else 1)) * heads + h
    added = tl.dot(tl.trans(v), m, input_precision=PRECISION)
    tl.store(states + (row * P + p)[:, None] * N + n[None, :], added, mask=(p < P)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=NO_HINTS)
def ssd_pass(
    A, states, length, heads, P, N, chunks, Q: tl.constexpr, BE: tl.constexpr, ADJOINT: tl.constexpr
):  # fmt: skip
    """In place: from row 0 to the last, or from the last to row 0, each row becomes its own plus the decayed one before
    it."""
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    u = tl.arange(0, TILE)
    q = tl.arange(0, Q)
    size = P * N
    begin = (b * (chunks + 1) + (chunks if ADJOINT else 0)) * heads + h
    carry = tl.load(states + begin * size + e, mask=e < size, other=0.0)
    for first in range(0, chunks, TILE):
        chunk = first + u
        valid = chunk < chunks
        if ADJOINT:
            chunk = chunks - 1 - chunk
        at = chunk[:, None] * Q + q[None, :]
        steps = tl.load(A + (b * length + at) * heads + h, mask=valid[:, None] & (at < length), other=0.0)
        decay = tl.exp(tl.sum(steps.to(tl.float32), 1))[:, None] + tl.zeros((TILE, BE), tl.float32)
        row = (b * (chunks + 1) + chunk + (0 if ADJOINT else 1)) * heads + h
        here = states + row[:, None] * size + e[None, :]
        mask = valid[:, None] & (e < size)[None, :]
        added = tl.load(here, mask=mask, other=0.0)
        added += tl.where((u == 0)[:, None], decay * carry[None, :], 0.0)
        _decay, state = tl.associative_scan((decay, added), 0, _combine)
        tl.store(here, state, mask=mask)
        carry = tl.sum(tl.where((u == TILE - 1)[:, None], state, 0.0), 0)


@triton.jit(do_not_specialize=NO_HINTS)
def ssd_outputs(
    query, key, value, A, states, out, length, heads, groups, P, N, chunks,
    Q: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, ADJOINT: tl.constexpr, SWAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Y and three gradients, which have the same form; out: (b, l, heads, width of value) float32.

        out_q = sum_{s <= q} decay(q, s) (query_q . key_s) value_s + decay(q, start) state query_q

    | out | query | key | value | state            | time      | SWAPPED: query and key have width P, value N
    | Y   | C     | B   | X     | before the chunk | forwards  |
    | dC  | dY    | X   | B     | before the chunk | forwards  | yes
    | dX  | B     | C   | dY    | adjoint after it | backwards |
    | dB  | X     | dY  | C     | adjoint after it | backwards | yes
    """
    chunk = tl.program_id(0)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    b = (tl.program_id(2) // heads).to(tl.int64)
    h = tl.program_id(2) % heads
    q = tl.arange(0, Q)
    at = chunk * Q + q
    sums, total = _sums(A, b, h, at, length, heads)
    inner = P if SWAPPED else N
    outer = N if SWAPPED else P
    row = (b * (chunks + 1) + chunk + (1 if ADJOINT else 0)) * heads + h
    pairs = tl.zeros((Q, Q), tl.float32)
    result = tl.zeros((Q, BO), tl.float32)
    for first in range(0, inner, BI):
        i = first + tl.arange(0, BI)
        asks = _rows(query, at, i, b, h, length, heads, groups, inner, SWAPPED)
        answers = _rows(key, at, i, b, h, length, heads, groups, inner, SWAPPED)
        pairs += tl.dot(asks, tl.trans(answers), input_precision=PRECISION)
        state = _state(states, row, i, o, P, N) if SWAPPED else tl.trans(_state(states, row, o, i, P, N))
        result += tl.dot(asks, state, input_precision=PRECISION)
    result *= tl.exp((total - sums if ADJOINT else sums).to(tl.float32))[:, None]
    # Made here and not before the loop, where the table would take registers; backwards, time is the negative of time.
    pairs *= _decays(-sums, -sums, -q) if ADJOINT else _decays(sums, sums, q)
    values = _rows(value, at, o, b, h, length, heads, groups, outer, not SWAPPED)
    result += tl.dot(pairs, values, input_precision=PRECISION)
    to = ((b * length + at) * heads + h)[:, None] * outer + o[None, :]
    tl.store(out + to, result, mask=(at < length)[:, None] & (o < outer)[None, :])


@triton.jit(do_not_specialize=NO_HINTS)
def ssd_decay_gradient(
    X, A, B, C, states, adjoints, dY, dA, length, heads, groups, P, N, chunks,
    Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dA: (b, l, heads).

    Log decay A_i lies on the way of the pairs (q, s) with s < i <= q, of the state before the chunk to q >= i, of s < i
    to the state after it, and of the one state to the other; dA_i is the sum of what these contribute. (Not the shorter
    difference of suffix sums of dY.Y and X.dX, whose large parts cancel.)
    """
    chunk = tl.program_id(0)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    q = tl.arange(0, Q)
    at = chunk * Q + q
    steps = _steps(A, b, h, at, length, heads)
    sums, total = tl.cumsum(steps, 0), tl.sum(steps, 0)
    before = (b * (chunks + 1) + chunk) * heads + h
    # Column i of the tables holds the pairs with s = i - 1, so that their cumulative sum holds those with s < i.
    earlier = tl.where(q > 0, at - 1, -1)
    scores = tl.zeros((Q, Q), tl.float32)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN)
        c_n = _rows(C, at, n, b, h, length, heads, groups, N, False)
        b_n = _rows(B, earlier, n, b, h, length, heads, groups, N, False)
        scores += tl.dot(c_n, tl.trans(b_n), input_precision=PRECISION)
    seen = tl.zeros((Q, Q), tl.float32)
    entering = tl.zeros((Q,), tl.float32)  # by position q: dY_q . state before C_q
    leaving = tl.zeros((Q,), tl.float32)  # by position s: X_s . adjoint after B_s
    through = 0.0
    for first in range(0, P, BP):
        p = first + tl.arange(0, BP)
        dy_p = _rows(dY, at, p, b, h, length, heads, groups, P, True)
        x_p = _rows(X, earlier, p, b, h, length, heads, groups, P, True)
        seen += tl.dot(dy_p, tl.trans(x_p), input_precision=PRECISION)
        x_p = _rows(X, at, p, b, h, length, heads, groups, P, True)
        for first_n in range(0, N, BN):
            n = first_n + tl.arange(0, BN)
            state = _state(states, before, p, n, P, N)
            adjoint = _state(adjoints, before + heads, p, n, P, N)
            through += tl.sum(tl.sum(state * adjoint, 1), 0)
            c_n = _rows(C, at, n, b, h, length, heads, groups, N, False)
            b_n = _rows(B, at, n, b, h, length, heads, groups, N, False)
            entering += tl.sum(tl.dot(c_n, tl.trans(state), input_precision=PRECISION) * dy_p, 1)
            leaving += tl.sum(tl.dot(b_n, tl.trans(adjoint), input_precision=PRECISION) * x_p, 1)
    entering *= tl.exp(sums.to(tl.float32))
    leaving *= tl.exp((total - sums).to(tl.float32))
    pairs = scores * seen * _decays(sums, sums - steps, q)
    crossing = tl.cumsum(pairs, 1)  # (q, i): pairs (q, s) with s < i <= q
    da = tl.sum(tl.where(q[:, None] >= q[None, :], crossing + entering[:, None], leaving[:, None]), 0)
    da += tl.exp(total.to(tl.float32)) * through
    tl.store(dA + (b * length + at) * heads + h, da, mask=at < length)
