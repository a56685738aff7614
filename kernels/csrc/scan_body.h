// The selective scan for one instruction set: forward and backward over channels-last arrays with a route table.
//
// A block of MM_WIDTH channels is one vector; its states stay in registers while time runs. The equations, the order
// of summation and the memory layout are derived in kernels/README.md. Everything here is static: the same source is
// compiled once per instruction set, and no function may be shared between them by the linker.
#pragma once
#include <stdlib.h>

#include "abi.h"
#include "pool.h"
#include "vec.h"

namespace {

constexpr int W = MM_WIDTH;
constexpr int T = MM_TILE;
constexpr int64_t kPhaseTiles = 8;  // backward: tiles between two summations of dB and dC over the channel groups

struct Layout {
    int64_t blocks;        // channel blocks of W
    int64_t tiles;         // time tiles
    int64_t padded;        // channels, padded as in `saved`
    Layout() = default;
    explicit Layout(const MmScan& s)
        : blocks((s.channels + W - 1) / W),
          tiles((s.length + T - 1) / T),
          padded((s.channels + MM_PAD - 1) / MM_PAD * MM_PAD) {}
};

vf* allocate(int64_t vectors) {
    const size_t bytes = (size_t)(vectors > 0 ? vectors : 1) * sizeof(vf);
    return (vf*)aligned_alloc(64, (bytes + 63) / 64 * 64);
}

int lanes_of_block(const MmScan& s, int64_t block) {
    const int64_t left = s.channels - block * W;
    return left < W ? (int)left : W;
}

// (.., d, n) for one block to one vector per state, and back.
void pack(const float* from, int64_t block, const MmScan& s, float factor, vf* to) {
    const int lanes = lanes_of_block(s, block);
    const float* rows = from + block * W * s.states;
    for (int64_t n = 0; n < s.states; ++n) {
        vf value = {};
        for (int lane = 0; lane < lanes; ++lane) value[lane] = rows[lane * s.states + n] * factor;
        to[n] = value;
    }
}

void unpack(const vf* from, int64_t block, const MmScan& s, float* to) {
    const int lanes = lanes_of_block(s, block);
    float* rows = to + block * W * s.states;
    for (int64_t n = 0; n < s.states; ++n)
        for (int lane = 0; lane < lanes; ++lane) rows[lane * s.states + n] = from[n][lane];
}

vf* packed_decay(const MmScan& s, const Layout& layout) {
    vf* decay = allocate(s.routes * layout.blocks * s.states);  // A * log2(e)
    if (decay == nullptr) return nullptr;
    for (int64_t k = 0; k < s.routes; ++k)
        for (int64_t block = 0; block < layout.blocks; ++block)
            pack(s.A + k * s.channels * s.states, block, s, 1.44269504f, decay + (k * layout.blocks + block) * s.states);
    return decay;
}

// True if every decay is at most 1, whatever the numbers: then powers of two need no upper bound.
bool decays_only(const MmScan& s) {
    if (!s.softplus) return false;
    bool positive = false;
    for (int64_t i = 0; i < s.routes * s.channels * s.states; ++i) positive |= s.A[i] > 0.0f;
    return !positive;
}

// Where the rows of one batch entry and route begin, and how far apart neighbours in space lie.
struct Rows {
    const int32_t* order;
    int64_t b, x, x_step, dt, dt_step, bc, bc_step, y, y_step;
    Rows(const MmScan& s, int64_t b, int64_t k) : b(b) {
        const int64_t K = s.routes, D = s.channels, N = s.states;
        const int64_t in_each = K * D;
        order = s.order == nullptr ? nullptr : s.order + k * s.length;
        x_step = s.x_per_route ? in_each : D;
        x = b * s.length * x_step + (s.x_per_route ? k * D : 0);
        dt_step = in_each;
        dt = b * s.length * in_each + k * D;
        bc_step = K * N;
        bc = b * s.length * bc_step + k * N;
        y_step = s.merge ? D : in_each;
        y = b * s.length * y_step + (s.merge ? 0 : k * D);
    }
    int64_t at(int64_t step) const { return order == nullptr ? step : order[step]; }
};

// The positions of one tile, the rows of B and C there, and its runs: visits between which the state passes on.
struct Tile {
    int count, runs;
    bool cut;           // the first run starts from zero
    int start[T + 1];   // first visit of each run, and the end of the last
    int64_t place[T];
    const float *B[T], *C[T];
    bool from_zero(int run) const { return run > 0 || cut; }
};

void find_runs(const int32_t* segments, const Rows& rows, int64_t start, Tile& found) {
    found.runs = 1;
    found.cut = false;
    found.start[0] = 0;
    if (segments != nullptr) {
        found.cut = start > 0 && segments[rows.at(start - 1)] != segments[found.place[0]];
        for (int t = 1; t < found.count; ++t)
            if (segments[found.place[t]] != segments[found.place[t - 1]]) found.start[found.runs++] = t;
    }
    found.start[found.runs] = found.count;
}

void find_tile(const MmScan& s, const Rows& rows, int64_t tile, Tile& found) {
    const int64_t start = tile * T;
    found.count = s.length - start < T ? (int)(s.length - start) : T;
    for (int t = 0; t < found.count; ++t) {
        found.place[t] = rows.at(start + t);
        found.B[t] = s.B + rows.bc + found.place[t] * rows.bc_step;
        found.C[t] = s.C + rows.bc + found.place[t] * rows.bc_step;
    }
    find_runs(s.segments == nullptr ? nullptr : s.segments + rows.b * s.length, rows, start, found);
}

// h[n] = 2^(delta A2[n]) h[n] + du B[n];  y += sum_n h[n] C[n], for NB states of one tile.
template <int NB, bool decays>
void forward_states(int count, const vf* delta, const vf* du, vf* y, const float* const* B, const float* const* C,
                    int64_t n0, const vf* A2, vf* state) {
    const PowerTable table = power_table();
    vf h[NB];
#pragma GCC unroll 16
    for (int i = 0; i < NB; ++i) h[i] = state[i];
    for (int t = 0; t < count; ++t) {
        const float* b = B[t] + n0;
        const float* c = C[t] + n0;
        const vf step = delta[t], input = du[t];
        vf sum[2] = {y[t], vf{}};
#pragma GCC unroll 16
        for (int i = 0; i < NB; ++i) {
            const Power decay = power_of_two<decays>(step * A2[i], table);
            h[i] = decay.factor * (decay.scale * h[i]) + input * b[i];
            sum[i & 1] += h[i] * c[i];
        }
        y[t] = sum[0] + sum[1];
    }
#pragma GCC unroll 16
    for (int i = 0; i < NB; ++i) state[i] = h[i];
}

template <bool decays>
void forward_run(int count, const vf* delta, const vf* du, vf* y, const float* const* B, const float* const* C,
                 int64_t states, const vf* A2, vf* h) {
    int64_t n = 0;
    for (; n + 16 <= states; n += 16) forward_states<16, decays>(count, delta, du, y, B, C, n, A2 + n, h + n);
    if (n + 8 <= states) forward_states<8, decays>(count, delta, du, y, B, C, n, A2 + n, h + n), n += 8;
    if (n + 4 <= states) forward_states<4, decays>(count, delta, du, y, B, C, n, A2 + n, h + n), n += 4;
    if (n + 2 <= states) forward_states<2, decays>(count, delta, du, y, B, C, n, A2 + n, h + n), n += 2;
    if (n < states) forward_states<1, decays>(count, delta, du, y, B, C, n, A2 + n, h + n);
}

// How many of `count` equal pieces per batch entry one task takes: the largest number that keeps the threads equally busy.
// The result of the scan does not depend on it.
int64_t even_share(int64_t count, int64_t batch, int64_t threads) {
    int64_t best = count, shortest = INT64_MAX;
    for (int64_t share = count; share >= 1; --share) {
        const int64_t tasks = batch * ((count + share - 1) / share);
        const int64_t time = (tasks + threads - 1) / threads * share;
        if (time < shortest) shortest = time, best = share;
    }
    return best;
}

template <bool decays>
void forward_tile(const Tile& tile, const vf* delta, const vf* du, vf* y, int64_t states, const vf* A2, vf* h) {
    for (int run = 0; run < tile.runs; ++run) {
        const int t = tile.start[run];
        if (tile.from_zero(run)) memset(h, 0, (size_t)states * sizeof(vf));
        forward_run<decays>(tile.start[run + 1] - t, delta + t, du + t, y + t, tile.B + t, tile.C + t, states, A2, h);
    }
}

struct ForwardJob {
    const MmScan* s;
    Layout layout;
    bool decays;
    int64_t group, groups;  // channel blocks per task, tasks per batch entry
    const vf* A2;
    vf* states;  // per worker: group * states vectors
};

// One batch entry, a group of channel blocks, all routes one after the other (y is summed in that order).
void forward_task(void* context, int64_t task, int worker) {
    const ForwardJob& job = *(const ForwardJob*)context;
    const MmScan& s = *job.s;
    const Layout& layout = job.layout;
    const int64_t N = s.states, b = task / job.groups;
    const int64_t first = task % job.groups * job.group;
    const int64_t end = first + job.group < layout.blocks ? first + job.group : layout.blocks;
    const PowerTable table = power_table();
    vf* const states = job.states + (int64_t)worker * job.group * N;
    vf delta[T], du[T], y[T];
    Tile tiles[2];
    for (int64_t k = 0; k < s.routes; ++k) {
        const Rows rows(s, b, k);
        const int64_t bk = b * s.routes + k;
        for (int64_t block = first; block < end; ++block) {
            vf* h = states + (block - first) * N;
            if (s.initial != nullptr) pack(s.initial + bk * s.channels * N, block, s, 1.0f, h);
            else for (int64_t n = 0; n < N; ++n) h[n] = vf{};
        }
        find_tile(s, rows, 0, tiles[0]);
        for (int64_t tile = 0; tile < layout.tiles; ++tile) {
            const Tile& now = tiles[tile & 1];
            Tile& next = tiles[(tile + 1) & 1];
            if (tile + 1 < layout.tiles) find_tile(s, rows, tile + 1, next);
            const int count = now.count;
            const int64_t* place = now.place;
            for (int64_t block = first; block < end; ++block) {
                // Rows are far apart: ask for those of the next block or tile while this one is computed.
                const bool same_rows = block + 1 < end;
                const Tile& ahead = same_rows || tile + 1 == layout.tiles ? now : next;
                const int64_t ahead_channel = (same_rows ? block + 1 : first) * W;
                const int lanes = lanes_of_block(s, block);
                const int64_t channel = block * W;
                vf* h = states + (block - first) * N;
                const vf* A2 = job.A2 + (k * layout.blocks + block) * N;
                if (s.saved != nullptr)
                    memcpy(s.saved + ((bk * layout.tiles + tile) * layout.padded + channel) * N, h, N * sizeof(vf));
                const vf bias = s.bias == nullptr ? vf{} : load(s.bias + k * s.channels + channel, lanes);
                const vf skip = s.D == nullptr ? vf{} : load(s.D + k * s.channels + channel, lanes);
                // Locals, because a store of a vector might change anything that is behind a pointer.
                const float *x_from = s.x + rows.x, *dt_from = s.dt + rows.dt, *y_from = s.y + rows.y;
                const bool softened = s.softplus;
                const int64_t x_step = rows.x_step, dt_step = rows.dt_step, y_step = rows.y_step;
                const int ahead_last = ahead.count - 1;
                for (int t = 0; t < count; ++t) {
                    const vf x = load(x_from + channel + place[t] * x_step, lanes);
                    const vf raw = load(dt_from + channel + place[t] * dt_step, lanes) + bias;
                    delta[t] = softened ? softplus<false>(raw, table).value : raw;
                    du[t] = delta[t] * x;
                    y[t] = skip * x;
                    const int64_t row = ahead.place[t < ahead_last ? t : ahead_last];
                    __builtin_prefetch(x_from + ahead_channel + row * x_step);
                    __builtin_prefetch(dt_from + ahead_channel + row * dt_step);
                    __builtin_prefetch(y_from + ahead_channel + row * y_step, 1);
                    if (!same_rows) __builtin_prefetch(ahead.B[t < ahead.count ? t : 0]);
                    if (!same_rows) __builtin_prefetch(ahead.C[t < ahead.count ? t : 0]);
                }
                if (job.decays) forward_tile<true>(now, delta, du, y, N, A2, h);
                else forward_tile<false>(now, delta, du, y, N, A2, h);
                const bool add = s.merge && k > 0, gate = s.z != nullptr && (!s.merge || k + 1 == s.routes);
                for (int t = 0; t < count; ++t) {
                    const int64_t at = rows.y + channel + place[t] * rows.y_step;
                    vf sum = add ? load(s.y + at, lanes) + y[t] : y[t];
                    if (gate) {
                        if (s.plain != nullptr) store(s.plain + at, sum, lanes);
                        sum *= silu(load(s.z + at, lanes), table).value;
                    }
                    store(s.y + at, sum, lanes);
                }
            }
        }
        if (s.last != nullptr)
            for (int64_t block = first; block < end; ++block)
                unpack(states + (block - first) * N, block, s, s.last + bk * s.channels * N);
    }
}

int forward(const MmScan* scan) {
    const MmScan& s = *scan;
    ForwardJob job{&s, Layout(s), decays_only(s), 0, 0, nullptr, nullptr};
    const int64_t threads = s.threads > 0 ? s.threads : 1;
    job.group = even_share(job.layout.blocks, s.batch, threads);
    job.groups = (job.layout.blocks + job.group - 1) / job.group;
    vf* A2 = packed_decay(s, job.layout);
    job.states = allocate(threads * job.group * s.states);
    job.A2 = A2;
    const bool ok = A2 != nullptr && job.states != nullptr;
    if (ok) mm_parallel((int)threads, s.batch * job.groups, forward_task, &job);
    free(A2);
    free(job.states);
    return ok ? MM_OK : MM_NO_MEMORY;
}

// Recompute the decays and states of one tile from its first state: h[0] is that state, h[t+1] the state after t.
template <int NB, bool decays>
void recompute_states(int count, const vf* delta, const vf* du, const float* const* B, int64_t n0, const vf* A2,
                      const vf* first, vf* a, vf* h) {
    const PowerTable table = power_table();
    vf state[NB];
#pragma GCC unroll 8
    for (int i = 0; i < NB; ++i) h[i] = state[i] = first[i];
    for (int t = 0; t < count; ++t) {
        const float* b = B[t] + n0;
        const vf step = delta[t], input = du[t];
#pragma GCC unroll 8
        for (int i = 0; i < NB; ++i) {
            const Power decay = power_of_two<decays>(step * A2[i], table);
            const vf product = decay.factor * decay.scale;
            a[t * NB + i] = product;
            h[(t + 1) * NB + i] = state[i] = product * state[i] + input * b[i];
        }
    }
}

// dB and dC of one position: chunks of W floats, each the dB of P states, then their dC.
constexpr int P = W / 2;

MM_INLINE void add_sums(float* to, vf sums, bool fresh) { store(to, fresh ? sums : load(to) + sums); }

// Adds a tile's sum to a long sum and keeps what rounding lost for the next time (Kahan): parameters collect their
// gradients over all positions, tens of thousands of them.
MM_INLINE void add_precisely(vf& sum, vf& rest, vf value) {
    const vf corrected = value - rest;
    const vf total = sum + corrected;
    rest = (total - sum) - corrected;
    sum = total;
}

// Adjoint sweep over one tile, last position first. carry[i] is a_{t+1} g_{t+1}. Where a position has fewer than P states
// in this call, the sums of several positions are finished together.
template <int NB, bool fresh>
void adjoint_states(int count, const vf* delta, const vf* du, const vf* dy, const float* const* B,
                    const float* const* C, int64_t n0, int64_t row_floats, const vf* A2, const vf* a, const vf* h,
                    vf* carry, vf* dA, vf* rest, vf* d_du, vf* d_delta, float* sums) {
    constexpr int kTogether = NB < P ? P / NB : 1;  // positions whose sums are finished together
    vf g_next[NB], sum_A[NB], pairs[NB < P ? P : NB];
    float* places[kTogether];
    int waiting = 0;
#pragma GCC unroll 8
    for (int i = 0; i < NB; ++i) g_next[i] = carry[i], sum_A[i] = vf{};
    float* const base = sums + n0 / P * W + n0 % P;
    for (int t = count - 1; t >= 0; --t) {
        const float* b = B[t] + n0;
        const float* c = C[t] + n0;
        const vf out = dy[t], input = du[t], step = delta[t];
        vf to_du = d_du[t], to_delta = d_delta[t];
        vf* mine = kTogether == 1 ? pairs : pairs + waiting * NB;
#pragma GCC unroll 8
        for (int i = 0; i < NB; ++i) {
            const vf g = g_next[i] + out * c[i];
            mine[i] = fold_pair(g * input, out * h[(t + 1) * NB + i]);
            to_du += g * b[i];
            g_next[i] = a[t * NB + i] * g;
            const vf q = g_next[i] * h[t * NB + i];
            sum_A[i] += q * step;
            to_delta += q * A2[i];
        }
        d_du[t] = to_du;
        d_delta[t] = to_delta;
        float* row = base + t * row_floats;
        if (kTogether == 1) {
#pragma GCC unroll 8
            for (int i = 0; i < NB; i += P) add_sums(row + i / P * W, finish_pairs(pairs + i), fresh);
        } else {
            places[waiting++] = row;
            if (waiting == kTogether || t == 0) {
                for (int i = waiting * NB; i < kTogether * NB; ++i) pairs[i] = vf{};
                const vf finished = finish_pairs(pairs);
                for (int j = 0; j < waiting; ++j)
                    for (int i = 0; i < NB; ++i) {
                        const float to_B = finished[j * NB + i], to_C = finished[P + j * NB + i];
                        places[j][i] = fresh ? to_B : places[j][i] + to_B;
                        places[j][P + i] = fresh ? to_C : places[j][P + i] + to_C;
                    }
                waiting = 0;
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NB; ++i) carry[i] = g_next[i], add_precisely(dA[i], rest[i], sum_A[i]);
}

struct BackwardJob {
    const MmScanGrad* g;
    Layout layout;
    bool decays;
    int64_t group, groups;        // blocks per group, groups: fixed by the shape alone, so that the order in which
                                  // channels are summed does not depend on the threads
    int64_t share, shares;        // groups per task, tasks per batch entry
    int64_t row_floats;           // floats that hold dB and dC of one position
    int64_t first_tile, end_tile; // of this phase
    const vf *A2, *zeros;         // zeros: the state from which a segment starts
    vf *carry, *dA, *rest;        // (b, k, block, n); rest is what rounding has taken from dA
    vf *dD, *dbias;               // (b, k, block)
    float* sums;                  // per worker: dB and dC of one tile, summed over all groups and over one
    float* partial;               // (group, b, k, position in phase, row_floats), when shares > 1
};

template <bool decays, bool fresh>
struct BackwardTile {
    template <int NB>
    static void states(int count, const vf* delta, const vf* du, const vf* dy, const float* const* B,
                       const float* const* C, int64_t n, int64_t row_floats, const vf* A2, const vf* first, vf* a,
                       vf* h, vf* carry, vf* dA, vf* rest, vf* d_du, vf* d_delta, float* sums) {
        recompute_states<NB, decays>(count, delta, du, B, n, A2 + n, first + n, a, h);
        adjoint_states<NB, fresh>(count, delta, du, dy, B, C, n, row_floats, A2 + n, a, h, carry + n, dA + n, rest + n, d_du,
                                  d_delta, sums);
    }
    static void run(int count, const vf* delta, const vf* du, const vf* dy, const float* const* B,
                    const float* const* C, int64_t N, int64_t row_floats, const vf* A2, const vf* first, vf* carry,
                    vf* dA, vf* rest, vf* d_du, vf* d_delta, float* sums) {
        alignas(64) vf a[T * 8], h[(T + 1) * 8];
        int64_t n = 0;
        for (; n + 8 <= N; n += 8)
            states<8>(count, delta, du, dy, B, C, n, row_floats, A2, first, a, h, carry, dA, rest, d_du, d_delta, sums);
        if (n + 4 <= N) {
            states<4>(count, delta, du, dy, B, C, n, row_floats, A2, first, a, h, carry, dA, rest, d_du, d_delta, sums);
            n += 4;
        }
        if (n + 2 <= N) {
            states<2>(count, delta, du, dy, B, C, n, row_floats, A2, first, a, h, carry, dA, rest, d_du, d_delta, sums);
            n += 2;
        }
        if (n < N) states<1>(count, delta, du, dy, B, C, n, row_floats, A2, first, a, h, carry, dA, rest, d_du, d_delta, sums);
    }
};

void backward_block(const BackwardJob& job, int64_t b, int64_t k, int64_t tile, int64_t block, bool fresh,
                    const Tile& now, const Tile& ahead, int64_t ahead_tile, int64_t ahead_block, float* sums) {
    const MmScanGrad& g = *job.g;
    const MmScan& s = g.s;
    const Layout& layout = job.layout;
    const Rows rows(s, b, k);
    const int64_t N = s.states, channel = block * W, bk = b * s.routes + k;
    const int count = now.count;
    const int64_t* place = now.place;
    const int lanes = lanes_of_block(s, block);
    const PowerTable table = power_table();
    const vf bias = s.bias == nullptr ? vf{} : load(s.bias + k * s.channels + channel, lanes);
    const vf skip = s.D == nullptr ? vf{} : load(s.D + k * s.channels + channel, lanes);
    vf x[T], delta[T], slope[T], du[T], dy[T], d_du[T], d_delta[T];
    const float* ahead_saved = s.saved + ((bk * layout.tiles + ahead_tile) * layout.padded + ahead_block * W) * N;
    for (int64_t n = 0; n < N; ++n) __builtin_prefetch(ahead_saved + n * W);
    // Locals, because a store of a vector might change anything that is behind a pointer.
    const float *x_from = s.x + rows.x, *dt_from = s.dt + rows.dt, *dy_from = g.dy + rows.y;
    float *const dx_to = g.dx + rows.x, *const ddt_to = g.ddt + rows.dt;
    const float *z_from = s.z == nullptr ? nullptr : s.z + rows.y, *plain_from = s.plain;
    float* const dz_to = !s.merge || k == 0 ? g.dz : nullptr;
    const bool softened = s.softplus;
    const int64_t x_step = rows.x_step, dt_step = rows.dt_step, y_step = rows.y_step;
    const int ahead_last = ahead.count - 1;
    const int64_t next = ahead_block * W;
    for (int t = 0; t < count; ++t) {
        x[t] = load(x_from + channel + place[t] * x_step, lanes);
        const int64_t at_y = channel + place[t] * y_step;
        dy[t] = load(dy_from + at_y, lanes);
        if (z_from != nullptr) {
            const Step gate = silu(load(z_from + at_y, lanes), table);
            if (dz_to != nullptr)
                store(dz_to + rows.y + at_y, dy[t] * load(plain_from + rows.y + at_y, lanes) * gate.slope, lanes);
            dy[t] *= gate.value;
        }
        const vf raw = load(dt_from + channel + place[t] * dt_step, lanes) + bias;
        const Step step = softened ? softplus<true>(raw, table) : Step{raw, all(1.0f)};
        delta[t] = step.value;
        slope[t] = step.slope;
        du[t] = step.value * x[t];
        d_du[t] = d_delta[t] = vf{};
        const int64_t row = ahead.place[t < ahead_last ? t : ahead_last];
        __builtin_prefetch(x_from + next + row * x_step);
        __builtin_prefetch(dt_from + next + row * dt_step);
        __builtin_prefetch(dy_from + next + row * y_step);
        __builtin_prefetch(dx_to + next + row * x_step, 1);
        __builtin_prefetch(ddt_to + channel + place[t] * dt_step, 1);
    }
    const int64_t at = (bk * layout.blocks + block);
    const vf* A2 = job.A2 + (k * layout.blocks + block) * N;
    const vf* first = (const vf*)(s.saved + ((bk * layout.tiles + tile) * layout.padded + channel) * N);
    vf *carry = job.carry + at * N, *dA = job.dA + at * N, *rest = job.rest + at * N;
    const int64_t row = job.row_floats;
    for (int run = now.runs - 1; run >= 0; --run) {
        const int t = now.start[run], length = now.start[run + 1] - t;
        const vf* before = now.from_zero(run) ? job.zeros : first;
        const auto sweep = job.decays ? (fresh ? BackwardTile<true, true>::run : BackwardTile<true, false>::run)
                                      : (fresh ? BackwardTile<false, true>::run : BackwardTile<false, false>::run);
        sweep(length, delta + t, du + t, dy + t, now.B + t, now.C + t, N, row, A2, before, carry, dA, rest, d_du + t,
              d_delta + t, sums + t * row);
        if (now.from_zero(run)) memset(carry, 0, (size_t)N * sizeof(vf));
    }
    vf sum_bias = vf{}, sum_skip = vf{};
    const bool once = s.x_per_route || s.routes == 1;  // nothing else is added to this dx
    for (int t = count - 1; t >= 0; --t) {
        float* dx = dx_to + channel + place[t] * x_step;
        const vf to_x = d_du[t] * delta[t] + skip * dy[t];
        store(dx, once ? to_x : load(dx, lanes) + to_x, lanes);
        const vf to_dt = (d_du[t] * x[t] + d_delta[t] * 0.69314718f) * slope[t];  // A = A2 ln 2
        store(ddt_to + channel + place[t] * dt_step, to_dt, lanes);
        sum_bias += to_dt;
        sum_skip += dy[t] * x[t];
    }
    job.dbias[at] += sum_bias;
    job.dD[at] += sum_skip;
}

// The finished sums of one position to their places in dB and dC.
void write_row(const BackwardJob& job, int64_t row, const float* sums) {
    for (int64_t n = 0; n < job.g->s.states; n += P, sums += W) {
        const int64_t left = job.g->s.states - n < P ? job.g->s.states - n : P;
        memcpy(job.g->dB + row + n, sums, (size_t)left * sizeof(float));
        memcpy(job.g->dC + row + n, sums + P, (size_t)left * sizeof(float));
    }
}

// One batch entry and a share of the channel groups, through all routes and the tiles of one phase. A row is read whole
// where one task has all its channels; then the sums of the groups are added here, in the order of reduce_task.
void backward_task(void* context, int64_t task, int worker) {
    const BackwardJob& job = *(const BackwardJob*)context;
    const MmScan& s = job.g->s;
    const int64_t row_floats = job.row_floats, b = task / job.shares, share = task % job.shares;
    const int64_t first = share * job.share * job.group;
    const int64_t last = first + job.share * job.group;
    const int64_t end = last < job.layout.blocks ? last : job.layout.blocks;
    const int64_t phase_length = kPhaseTiles * T;
    float* const total = job.sums + (int64_t)worker * 2 * T * row_floats;
    float* const own = total + T * row_floats;
    Tile tiles[2];
    for (int64_t k = 0; k < s.routes; ++k) {
        const Rows rows(s, b, k);
        find_tile(s, rows, job.end_tile - 1, tiles[(job.end_tile - 1) & 1]);
        for (int64_t tile = job.end_tile - 1; tile >= job.first_tile; --tile) {
            const Tile& now = tiles[tile & 1];
            Tile& next = tiles[(tile + 1) & 1];
            if (tile > job.first_tile) find_tile(s, rows, tile - 1, next);
            const int64_t ahead_tile = tile == job.first_tile ? tile : tile - 1;
            for (int64_t block = first; block < end; ++block) {
                const bool same_rows = block + 1 < end;
                const Tile& ahead = same_rows || tile == job.first_tile ? now : next;
                const int64_t group = block / job.group;
                bool fresh = block % job.group == 0;
                float* sums = total;
                if (job.shares > 1) {
                    sums = job.partial + (((group * s.batch + b) * s.routes + k) * phase_length +
                                          (tile - job.first_tile) * T) * row_floats;
                } else if (job.group == 1) {
                    fresh = block == 0;  // adding block after block is adding group after group
                } else if (group > 0) {
                    sums = own;
                }
                backward_block(job, b, k, tile, block, fresh, now, ahead, same_rows ? tile : ahead_tile,
                               same_rows ? block + 1 : first, sums);
                if (sums == own && (block + 1 == end || (block + 1) % job.group == 0))
                    for (int64_t i = 0; i < now.count * row_floats; i += W) store(total + i, load(total + i) + load(own + i));
            }
            if (job.shares > 1) continue;
            for (int t = 0; t < now.count; ++t) write_row(job, rows.bc + now.place[t] * rows.bc_step, total + t * row_floats);
        }
    }
}

// dB and dC of one batch entry, route and tile: the sum over the channel groups, in their order.
void reduce_task(void* context, int64_t task, int) {
    const BackwardJob& job = *(const BackwardJob*)context;
    const MmScan& s = job.g->s;
    const int64_t tiles = job.end_tile - job.first_tile, row_floats = job.row_floats;
    const int64_t tile = job.first_tile + task % tiles, bk = task / tiles;
    const int64_t b = bk / s.routes, k = bk % s.routes, start = tile * T;
    const int64_t phase_length = kPhaseTiles * T;
    const Rows rows(s, b, k);
    const int count = s.length - start < T ? (int)(s.length - start) : T;
    const int64_t between_groups = s.batch * s.routes * phase_length * row_floats;
    for (int t = 0; t < count; ++t) {
        float* sums = job.partial + (bk * phase_length + (start - job.first_tile * T) + t) * row_floats;
        for (int64_t i = 0; i < row_floats; i += W) {
            vf sum = load(sums + i);
            for (int64_t group = 1; group < job.groups; ++group) sum += load(sums + group * between_groups + i);
            store(sums + i, sum);
        }
        write_row(job, rows.bc + rows.at(start + t) * rows.bc_step, sums);
    }
}

// Parameters have one gradient per batch entry: sum them in order.
void parameter_gradients(const BackwardJob& job) {
    const MmScanGrad& g = *job.g;
    const MmScan& s = g.s;
    const int64_t KB = s.routes * job.layout.blocks, N = s.states, D = s.channels;
    for (int64_t at = 0; at < KB; ++at) {
        const int64_t k = at / job.layout.blocks, block = at % job.layout.blocks;
        const int lanes = lanes_of_block(s, block);
        for (int64_t b = 1; b < s.batch; ++b) {
            for (int64_t n = 0; n < N; ++n) job.dA[at * N + n] += job.dA[(b * KB + at) * N + n];
            job.dD[at] += job.dD[b * KB + at];
            job.dbias[at] += job.dbias[b * KB + at];
        }
        unpack(job.dA + at * N, block, s, g.dA + k * D * N);
        if (g.dD != nullptr) store(g.dD + k * D + block * W, job.dD[at], lanes);
        if (g.dbias != nullptr) store(g.dbias + k * D + block * W, job.dbias[at], lanes);
    }
}

int backward(const MmScanGrad* grad) {
    const MmScanGrad& g = *grad;
    const MmScan& s = g.s;
    const Layout layout(s);
    BackwardJob job{};
    job.g = grad;
    job.layout = layout;
    job.decays = decays_only(s);
    const int64_t wanted = s.batch >= 8 ? 1 : (8 + s.batch - 1) / s.batch;
    job.group = (layout.blocks + wanted - 1) / wanted;
    job.groups = (layout.blocks + job.group - 1) / job.group;
    job.row_floats = (s.states + P - 1) / P * W;
    const int64_t threads = s.threads > 0 ? s.threads : 1;
    job.share = even_share(job.groups, s.batch, threads);
    job.shares = (job.groups + job.share - 1) / job.share;
    const int64_t all_blocks = s.batch * s.routes * layout.blocks;
    // Phases even where nothing is reduced between them: they decide the order in which the routes add to dx.
    const int64_t phase = kPhaseTiles < layout.tiles ? kPhaseTiles : layout.tiles;
    vf* A2 = packed_decay(s, layout);
    vf* zeros = allocate(s.states);
    job.A2 = A2;
    job.zeros = zeros;
    job.carry = allocate(all_blocks * s.states);
    job.dA = allocate(all_blocks * s.states);
    job.rest = allocate(all_blocks * s.states);
    job.dD = allocate(all_blocks);
    job.dbias = allocate(all_blocks);
    job.sums = (float*)allocate(threads * 2 * T * job.row_floats / W);
    if (job.shares > 1)
        job.partial = (float*)allocate(job.groups * s.batch * s.routes * kPhaseTiles * T * job.row_floats / W);
    const bool ok = A2 && zeros && job.carry && job.dA && job.rest && job.dD && job.dbias && job.sums && (job.shares == 1 || job.partial);
    if (ok) {
        memset(zeros, 0, (size_t)s.states * sizeof(vf));
        memset(job.dA, 0, (size_t)(all_blocks * s.states) * sizeof(vf));
        memset(job.rest, 0, (size_t)(all_blocks * s.states) * sizeof(vf));
        memset(job.dD, 0, (size_t)all_blocks * sizeof(vf));
        memset(job.dbias, 0, (size_t)all_blocks * sizeof(vf));
        const int64_t per_bk = s.channels * s.states;
        for (int64_t at = 0; at < all_blocks; ++at) {
            if (g.dlast != nullptr)
                pack(g.dlast + at / layout.blocks * per_bk, at % layout.blocks, s, 1.0f, job.carry + at * s.states);
            else
                memset(job.carry + at * s.states, 0, (size_t)s.states * sizeof(vf));
        }
        if (!s.x_per_route && s.routes > 1) memset(g.dx, 0, (size_t)(s.batch * s.length * s.channels) * sizeof(float));
        for (job.end_tile = layout.tiles; job.end_tile > 0; job.end_tile = job.first_tile) {
            job.first_tile = job.end_tile > phase ? job.end_tile - phase : 0;
            mm_parallel((int)threads, s.batch * job.shares, backward_task, &job);
            if (job.shares > 1)
                mm_parallel((int)threads, s.batch * s.routes * (job.end_tile - job.first_tile), reduce_task, &job);
        }
        parameter_gradients(job);
        if (g.dinitial != nullptr)
            for (int64_t at = 0; at < all_blocks; ++at)
                unpack(job.carry + at * s.states, at % layout.blocks, s, g.dinitial + at / layout.blocks * per_bk);
    }
    free(A2);
    free(zeros);
    free(job.carry);
    free(job.dA);
    free(job.rest);
    free(job.dD);
    free(job.dbias);
    free(job.sums);
    free(job.partial);
    return ok ? MM_OK : MM_NO_MEMORY;
}

}  // namespace
