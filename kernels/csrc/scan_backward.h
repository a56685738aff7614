// The selective scan: backward pass, which finds the states of a tile again and sweeps them from the last visit to the
// first. Static, as all of scan_layout.h.
#pragma once
#include "scan_layout.h"

namespace {

// Recompute the decays and states of one tile from its first state: h[0] is that state, h[t+1] the state after t.
template <int NB, bool decays>
void recompute_states(int count, const vf* delta, const vf* du, const float* const* B, int64_t n0, const vf* A2,
                      const vf* first, vf* a, vf* h) {
    vf state[NB];
#pragma GCC unroll 8
    for (int i = 0; i < NB; ++i) h[i] = state[i] = first[i];
    for (int t = 0; t < count; ++t) {
        const float* b = B[t] + n0;
        const vf step = delta[t], input = du[t];
#pragma GCC unroll 8
        for (int i = 0; i < NB; ++i) {
            const Power decay = power_of_two<decays>(step * A2[i]);
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

// Visits of one tile between two segment resets, for one block of channels: what the backward pass reads and adds to.
struct Stretch {
    int count;
    const vf *delta, *du, *dy;  // (count,)
    const float *const *B, *const *C;
    vf *d_du, *d_delta;
    const vf *A2, *first;       // (n,), first: the state before the stretch
    vf *carry, *dA, *rest;
    int64_t row_floats;
    float* sums;                // (count, row_floats): dB and dC
};

// Adjoint sweep over one stretch, last position first. carry[i] is a_{t+1} g_{t+1}. Where a position has fewer than P states
// in this call, the sums of several positions are finished together.
template <int NB, bool fresh>
void adjoint_states(const Stretch& s, int64_t n0, const vf* a, const vf* h) {
    // Locals, because a store of a vector might change anything that is behind a pointer.
    const int count = s.count;
    const vf *const delta = s.delta, *const du = s.du, *const dy = s.dy, *const A2 = s.A2 + n0;
    const float *const *const B = s.B, *const *const C = s.C;
    vf *const carry = s.carry + n0, *const dA = s.dA + n0, *const rest = s.rest + n0;
    vf *const d_du = s.d_du, *const d_delta = s.d_delta;
    const int64_t row_floats = s.row_floats;
    float* const sums = s.sums;
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
    int64_t per_task, pieces;     // groups per task, tasks per batch entry
    int64_t row_floats;           // floats that hold dB and dC of one position
    int64_t first_tile, end_tile; // of this phase
    const vf *A2, *zeros;         // zeros: the state from which a segment starts
    vf *carry, *dA, *rest;        // (b, k, block, n); rest is what rounding has taken from dA
    vf *dD, *ddt_bias;            // (b, k, block)
    float* sums;                  // per worker: dB and dC of one tile, summed over all groups and over one
    float* partial;               // (group, b, k, position in phase, row_floats), when pieces > 1
};

template <int NB, bool decays, bool fresh>
void backward_states(const Stretch& s, int64_t n, vf* a, vf* h) {
    recompute_states<NB, decays>(s.count, s.delta, s.du, s.B, n, s.A2 + n, s.first + n, a, h);
    adjoint_states<NB, fresh>(s, n, a, h);
}

template <bool decays, bool fresh>
void backward_stretch(const Stretch& s, int64_t N) {
    alignas(64) vf a[T * 8], h[(T + 1) * 8];
    int64_t n = 0;
    for (; n + 8 <= N; n += 8) backward_states<8, decays, fresh>(s, n, a, h);
    if (n + 4 <= N) backward_states<4, decays, fresh>(s, n, a, h), n += 4;
    if (n + 2 <= N) backward_states<2, decays, fresh>(s, n, a, h), n += 2;
    if (n < N) backward_states<1, decays, fresh>(s, n, a, h);
}

void backward_block(const BackwardJob& job, int64_t b, int64_t k, int64_t tile, int64_t block, bool fresh,
                    const Tile& now, const Tile& ahead, int64_t ahead_tile, int64_t ahead_block, float* sums) {
    const MmScanGrad& g = *job.g;
    const MmScan& s = g.s;
    const Layout& layout = job.layout;
    const Rows rows(s, b, k);
    const int64_t N = s.states, channel = block * W, bk = b * s.route_count + k;
    const int count = now.count;
    const int64_t* place = now.place;
    const int lanes = lanes_from(block * W, s.channels);
    const vf bias = s.dt_bias == nullptr ? vf{} : load(s.dt_bias + k * s.channels + channel, lanes);
    const vf skip = s.D == nullptr ? vf{} : load(s.D + k * s.channels + channel, lanes);
    vf x[T], delta[T], slope[T], du[T], dy[T], d_du[T], d_delta[T];
    const float* ahead_saved = s.saved_states + ((bk * layout.tiles + ahead_tile) * layout.padded + ahead_block * W) * N;
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
            const Step gate = silu(load(z_from + at_y, lanes));
            if (dz_to != nullptr)
                store(dz_to + rows.y + at_y, dy[t] * load(plain_from + rows.y + at_y, lanes) * gate.slope, lanes);
            dy[t] *= gate.value;
        }
        const vf raw = load(dt_from + channel + place[t] * dt_step, lanes) + bias;
        const Step step = softened ? softplus(raw) : Step{raw, all(1.0f)};
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
    const vf* first = (const vf*)(s.saved_states + ((bk * layout.tiles + tile) * layout.padded + channel) * N);
    vf *carry = job.carry + at * N, *dA = job.dA + at * N, *rest = job.rest + at * N;
    for (int i = now.stretches - 1; i >= 0; --i) {
        const int t = now.start[i];
        const Stretch stretch = {now.start[i + 1] - t, delta + t, du + t, dy + t, now.B + t, now.C + t,
                                 d_du + t, d_delta + t, A2, now.reset_before(i) ? job.zeros : first,
                                 carry, dA, rest, job.row_floats, sums + t * job.row_floats};
        if (job.decays) fresh ? backward_stretch<true, true>(stretch, N) : backward_stretch<true, false>(stretch, N);
        else fresh ? backward_stretch<false, true>(stretch, N) : backward_stretch<false, false>(stretch, N);
        if (now.reset_before(i)) memset(carry, 0, (size_t)N * sizeof(vf));
    }
    vf sum_bias = vf{}, sum_skip = vf{};
    const bool once = s.x_per_route || s.route_count == 1;  // nothing else is added to this dx
    for (int t = count - 1; t >= 0; --t) {
        float* dx = dx_to + channel + place[t] * x_step;
        const vf to_x = d_du[t] * delta[t] + skip * dy[t];
        store(dx, once ? to_x : load(dx, lanes) + to_x, lanes);
        const vf to_dt = (d_du[t] * x[t] + d_delta[t] * 0.69314718f) * slope[t];  // A = A2 ln 2
        store(ddt_to + channel + place[t] * dt_step, to_dt, lanes);
        sum_bias += to_dt;
        sum_skip += dy[t] * x[t];
    }
    job.ddt_bias[at] += sum_bias;
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

// One batch entry and some of the channel groups, through all routes and the tiles of one phase. A row is read whole
// where one task has all its channels; then the sums of the groups are added here, in the order of reduce_task.
void backward_task(void* context, int64_t task, int worker) {
    const BackwardJob& job = *(const BackwardJob*)context;
    const MmScan& s = job.g->s;
    const int64_t row_floats = job.row_floats, b = task / job.pieces, piece = task % job.pieces;
    const int64_t first = piece * job.per_task * job.group;
    const int64_t last = first + job.per_task * job.group;
    const int64_t end = last < job.layout.blocks ? last : job.layout.blocks;
    const int64_t phase_length = kPhaseTiles * T;
    float* const total = job.sums + (int64_t)worker * 2 * T * row_floats;
    float* const own = total + T * row_floats;
    Tile tiles[2];
    for (int64_t k = 0; k < s.route_count; ++k) {
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
                if (job.pieces > 1) {
                    sums = job.partial + (((group * s.batch + b) * s.route_count + k) * phase_length +
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
            if (job.pieces > 1) continue;
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
    const int64_t b = bk / s.route_count, k = bk % s.route_count, start = tile * T;
    const int64_t phase_length = kPhaseTiles * T;
    const Rows rows(s, b, k);
    const int count = s.length - start < T ? (int)(s.length - start) : T;
    const int64_t between_groups = s.batch * s.route_count * phase_length * row_floats;
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
    const int64_t KB = s.route_count * job.layout.blocks, N = s.states, D = s.channels;
    for (int64_t at = 0; at < KB; ++at) {
        const int64_t k = at / job.layout.blocks, block = at % job.layout.blocks;
        const int lanes = lanes_from(block * W, s.channels);
        for (int64_t b = 1; b < s.batch; ++b) {
            for (int64_t n = 0; n < N; ++n) job.dA[at * N + n] += job.dA[(b * KB + at) * N + n];
            job.dD[at] += job.dD[b * KB + at];
            job.ddt_bias[at] += job.ddt_bias[b * KB + at];
        }
        unpack(job.dA + at * N, block, s, g.dA + k * D * N);
        if (g.dD != nullptr) store(g.dD + k * D + block * W, job.dD[at], lanes);
        if (g.ddt_bias != nullptr) store(g.ddt_bias + k * D + block * W, job.ddt_bias[at], lanes);
    }
}

int backward(const MmScanGrad* grad) {
    const MmScanGrad& g = *grad;
    const MmScan& s = g.s;
    const Layout layout = layout_of(s);
    BackwardJob job{};
    job.g = grad;
    job.layout = layout;
    job.decays = decays_only(s);
    const int64_t wanted = s.batch >= 8 ? 1 : (8 + s.batch - 1) / s.batch;
    job.group = (layout.blocks + wanted - 1) / wanted;
    job.groups = (layout.blocks + job.group - 1) / job.group;
    job.row_floats = (s.states + P - 1) / P * W;
    job.per_task = even_pieces(job.groups, s.batch, s.threads);
    job.pieces = (job.groups + job.per_task - 1) / job.per_task;
    const int64_t all_blocks = s.batch * s.route_count * layout.blocks;
    // Phases even where nothing is reduced between them: they decide the order in which the routes add to dx.
    const int64_t phase = kPhaseTiles < layout.tiles ? kPhaseTiles : layout.tiles;
    Scratch scratch;
    job.A2 = packed_decay(s, layout, scratch);
    job.zeros = scratch.vectors(s.states, true);
    job.carry = scratch.vectors(all_blocks * s.states, true);
    job.dA = scratch.vectors(all_blocks * s.states, true);
    job.rest = scratch.vectors(all_blocks * s.states, true);
    job.dD = scratch.vectors(all_blocks, true);
    job.ddt_bias = scratch.vectors(all_blocks, true);
    job.sums = (float*)scratch.vectors(s.threads * 2 * T * job.row_floats / W);
    if (job.pieces > 1)
        job.partial = (float*)scratch.vectors(job.groups * s.batch * s.route_count * kPhaseTiles * T * job.row_floats / W);
    if (!scratch.ok) return MM_NO_MEMORY;
    const int64_t per_bk = s.channels * s.states;
    if (g.dlast_state != nullptr)
        for (int64_t at = 0; at < all_blocks; ++at)
            pack(g.dlast_state + at / layout.blocks * per_bk, at % layout.blocks, s, 1.0f, job.carry + at * s.states);
    if (!s.x_per_route && s.route_count > 1) memset(g.dx, 0, (size_t)(s.batch * s.length * s.channels) * sizeof(float));
    for (job.end_tile = layout.tiles; job.end_tile > 0; job.end_tile = job.first_tile) {
        job.first_tile = job.end_tile > phase ? job.end_tile - phase : 0;
        mm_parallel(s.threads, s.batch * job.pieces, backward_task, &job);
        if (job.pieces > 1)
            mm_parallel(s.threads, s.batch * s.route_count * (job.end_tile - job.first_tile), reduce_task, &job);
    }
    parameter_gradients(job);
    if (g.dinitial_state != nullptr)
        for (int64_t at = 0; at < all_blocks; ++at)
            unpack(job.carry + at * s.states, at % layout.blocks, s, g.dinitial_state + at / layout.blocks * per_bk);
    return MM_OK;
}

}  // namespace
