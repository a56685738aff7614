// The selective scan: forward pass over channels-last arrays with a route table. Static, as all of scan_layout.h.
#pragma once
#include "scan_layout.h"

namespace {

// h[n] = 2^(delta A2[n]) h[n] + du B[n];  y += sum_n h[n] C[n], for NB states of one tile.
template <int NB, bool decays>
void forward_states(int count, const vf* delta, const vf* du, vf* y, const float* const* B, const float* const* C,
                    int64_t n0, const vf* A2, vf* state) {
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
            const Power decay = power_of_two<decays>(step * A2[i]);
            h[i] = decay.factor * (decay.scale * h[i]) + input * b[i];
            sum[i & 1] += h[i] * c[i];
        }
        y[t] = sum[0] + sum[1];
    }
#pragma GCC unroll 16
    for (int i = 0; i < NB; ++i) state[i] = h[i];
}

template <bool decays>
void forward_tile(const Tile& tile, const vf* all_delta, const vf* all_du, vf* all_y, int64_t states, const vf* A2, vf* h) {
    for (int i = 0; i < tile.stretches; ++i) {
        const int t = tile.start[i], count = tile.start[i + 1] - t;
        const vf *const delta = all_delta + t, *const du = all_du + t;
        vf* const y = all_y + t;
        const float *const *const B = tile.B + t, *const *const C = tile.C + t;
        if (tile.reset_before(i)) memset(h, 0, (size_t)states * sizeof(vf));
        int64_t n = 0;
        for (; n + 16 <= states; n += 16) forward_states<16, decays>(count, delta, du, y, B, C, n, A2 + n, h + n);
        if (n + 8 <= states) forward_states<8, decays>(count, delta, du, y, B, C, n, A2 + n, h + n), n += 8;
        if (n + 4 <= states) forward_states<4, decays>(count, delta, du, y, B, C, n, A2 + n, h + n), n += 4;
        if (n + 2 <= states) forward_states<2, decays>(count, delta, du, y, B, C, n, A2 + n, h + n), n += 2;
        if (n < states) forward_states<1, decays>(count, delta, du, y, B, C, n, A2 + n, h + n);
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
    vf* const states = job.states + (int64_t)worker * job.group * N;
    vf delta[T], du[T], y[T];
    Tile tiles[2];
    for (int64_t k = 0; k < s.route_count; ++k) {
        const Rows rows(s, b, k);
        const int64_t bk = b * s.route_count + k;
        for (int64_t block = first; block < end; ++block) {
            vf* h = states + (block - first) * N;
            if (s.initial_state != nullptr) pack(s.initial_state + bk * s.channels * N, block, s, 1.0f, h);
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
                // Rows are far apart: prefetch those of the next block or tile while this one is computed.
                const bool same_rows = block + 1 < end;
                const Tile& ahead = same_rows || tile + 1 == layout.tiles ? now : next;
                const int64_t ahead_channel = (same_rows ? block + 1 : first) * W;
                const int lanes = lanes_from(block * W, s.channels);
                const int64_t channel = block * W;
                vf* h = states + (block - first) * N;
                const vf* A2 = job.A2 + (k * layout.blocks + block) * N;
                if (s.saved_states != nullptr)
                    memcpy(s.saved_states + ((bk * layout.tiles + tile) * layout.padded + channel) * N, h, N * sizeof(vf));
                const vf bias = s.dt_bias == nullptr ? vf{} : load(s.dt_bias + k * s.channels + channel, lanes);
                const vf skip = s.D == nullptr ? vf{} : load(s.D + k * s.channels + channel, lanes);
                // Locals, because a store of a vector might change anything that is behind a pointer.
                const float *x_from = s.x + rows.x, *dt_from = s.dt + rows.dt, *y_from = s.y + rows.y;
                const bool softened = s.softplus;
                const int64_t x_step = rows.x_step, dt_step = rows.dt_step, y_step = rows.y_step;
                const int ahead_last = ahead.count - 1;
                for (int t = 0; t < count; ++t) {
                    const vf x = load(x_from + channel + place[t] * x_step, lanes);
                    const vf raw = load(dt_from + channel + place[t] * dt_step, lanes) + bias;
                    delta[t] = softened ? softplus(raw).value : raw;
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
                const bool add = s.merge && k > 0, gate = s.z != nullptr && (!s.merge || k + 1 == s.route_count);
                for (int t = 0; t < count; ++t) {
                    const int64_t at = rows.y + channel + place[t] * rows.y_step;
                    vf sum = add ? load(s.y + at, lanes) + y[t] : y[t];
                    if (gate) {
                        if (s.plain != nullptr) store(s.plain + at, sum, lanes);
                        sum *= silu(load(s.z + at, lanes)).value;
                    }
                    store(s.y + at, sum, lanes);
                }
            }
        }
        if (s.last_state != nullptr)
            for (int64_t block = first; block < end; ++block)
                unpack(states + (block - first) * N, block, s, s.last_state + bk * s.channels * N);
    }
}

int forward(const MmScan* scan) {
    const MmScan& s = *scan;
    ForwardJob job{&s, layout_of(s), decays_only(s), 0, 0, nullptr, nullptr};
    job.group = even_pieces(job.layout.blocks, s.batch, s.threads);
    job.groups = (job.layout.blocks + job.group - 1) / job.group;
    Scratch scratch;
    job.A2 = packed_decay(s, job.layout, scratch);
    job.states = scratch.vectors(s.threads * job.group * s.states);
    if (!scratch.ok) return MM_NO_MEMORY;
    mm_parallel(s.threads, s.batch * job.groups, forward_task, &job);
    return MM_OK;
}

}  // namespace
