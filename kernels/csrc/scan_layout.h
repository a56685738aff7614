// The scan's work for one instruction set: blocks of channels, tiles of visits, rows of the arrays, work per thread.
//
// A block of MM_WIDTH channels is one vector; its states stay in registers while time runs. The equations, the order
// of summation and the memory layout are derived in kernels/README.md. Everything here is static: the same source is
// compiled once per instruction set, and no function may be shared between them by the linker.
#pragma once
#include <stdlib.h>

#include "abi.h"
#include "vec.h"

namespace {

constexpr int W = MM_WIDTH;
constexpr int T = MM_TILE;
constexpr int64_t kPhaseTiles = 8;  // backward: tiles between two summations of dB and dC over the channel groups

struct Layout {
    int64_t blocks;        // channel blocks of W
    int64_t tiles;         // time tiles
    int64_t padded;        // channels, padded as in `saved`
};

Layout layout_of(const MmScan& s) {
    return {(s.channels + W - 1) / W, (s.length + T - 1) / T, (s.channels + MM_PAD - 1) / MM_PAD * MM_PAD};
}

// Memory for one call, freed at its end; `ok` is false if some could not be had.
struct Scratch {
    void* all[10];
    int count = 0;
    bool ok = true;
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() {
        while (count > 0) free(all[--count]);
    }
    vf* vectors(int64_t size, bool zero = false) {
        const size_t bytes = ((size_t)size * sizeof(vf) + 63) / 64 * 64;
        vf* const found = (vf*)aligned_alloc(64, bytes);
        ok &= found != nullptr;
        if (zero && found != nullptr) memset(found, 0, bytes);
        all[count++] = found;
        return found;
    }
};

// Number of lanes in use of the vector that begins at channel `first`, with channels up to `end`.
int lanes_from(int64_t first, int64_t end) { return end - first < W ? (int)(end - first) : W; }

// (.., d, n) for one block to one vector per state, and back.
void pack(const float* from, int64_t block, const MmScan& s, float factor, vf* to) {
    const int lanes = lanes_from(block * W, s.channels);
    const float* rows = from + block * W * s.states;
    for (int64_t n = 0; n < s.states; ++n) {
        vf value = {};
        for (int lane = 0; lane < lanes; ++lane) value[lane] = rows[lane * s.states + n] * factor;
        to[n] = value;
    }
}

void unpack(const vf* from, int64_t block, const MmScan& s, float* to) {
    const int lanes = lanes_from(block * W, s.channels);
    float* rows = to + block * W * s.states;
    for (int64_t n = 0; n < s.states; ++n)
        for (int lane = 0; lane < lanes; ++lane) rows[lane * s.states + n] = from[n][lane];
}

vf* packed_decay(const MmScan& s, const Layout& layout, Scratch& scratch) {
    vf* decay = scratch.vectors(s.route_count * layout.blocks * s.states);  // A * log2(e)
    if (decay == nullptr) return nullptr;
    for (int64_t k = 0; k < s.route_count; ++k)
        for (int64_t block = 0; block < layout.blocks; ++block)
            pack(s.A + k * s.channels * s.states, block, s, 1.44269504f, decay + (k * layout.blocks + block) * s.states);
    return decay;
}

// True if every decay is at most 1, whatever the numbers: then powers of two need no upper bound.
bool decays_only(const MmScan& s) {
    if (!s.softplus) return false;
    bool positive = false;
    for (int64_t i = 0; i < s.route_count * s.channels * s.states; ++i) positive |= s.A[i] > 0.0f;
    return !positive;
}

// Where the rows of one batch entry and route begin, and how far apart neighbours in space lie.
struct Rows {
    const int32_t* routes;
    int64_t b, x, x_step, dt, dt_step, bc, bc_step, y, y_step;
    Rows(const MmScan& s, int64_t b, int64_t k) : b(b) {
        const int64_t K = s.route_count, D = s.channels, N = s.states;
        const int64_t in_each = K * D;
        routes = s.routes == nullptr ? nullptr : s.routes + k * s.length;
        x_step = s.x_per_route ? in_each : D;
        x = b * s.length * x_step + (s.x_per_route ? k * D : 0);
        dt_step = in_each;
        dt = b * s.length * in_each + k * D;
        bc_step = K * N;
        bc = b * s.length * bc_step + k * N;
        y_step = s.merge ? D : in_each;
        y = b * s.length * y_step + (s.merge ? 0 : k * D);
    }
    int64_t at(int64_t step) const { return routes == nullptr ? step : routes[step]; }
};

// The positions of one tile, the rows of B and C there, and its stretches: visits between two segment resets.
struct Tile {
    int count, stretches;
    bool reset;         // the first stretch starts from zero
    int start[T + 1];   // first visit of each stretch, and the end of the last
    int64_t place[T];
    const float *B[T], *C[T];
    bool reset_before(int stretch) const { return stretch > 0 || reset; }
};

void find_tile(const MmScan& s, const Rows& rows, int64_t tile, Tile& found) {
    const int64_t start = tile * T;
    found.count = s.length - start < T ? (int)(s.length - start) : T;
    for (int t = 0; t < found.count; ++t) {
        found.place[t] = rows.at(start + t);
        found.B[t] = s.B + rows.bc + found.place[t] * rows.bc_step;
        found.C[t] = s.C + rows.bc + found.place[t] * rows.bc_step;
    }
    found.stretches = 1;
    found.reset = false;
    found.start[0] = 0;
    if (s.segments != nullptr) {
        const int32_t* segments = s.segments + rows.b * s.length;
        found.reset = start > 0 && segments[rows.at(start - 1)] != segments[found.place[0]];
        for (int t = 1; t < found.count; ++t)
            if (segments[found.place[t]] != segments[found.place[t - 1]]) found.start[found.stretches++] = t;
    }
    found.start[found.stretches] = found.count;
}

// How many of `count` equal pieces per batch entry one task takes: the largest number that keeps the threads equally busy.
// The result of the scan does not depend on it.
int64_t even_pieces(int64_t count, int64_t batch, int64_t threads) {
    int64_t best = count, shortest = INT64_MAX;
    for (int64_t per_task = count; per_task >= 1; --per_task) {
        const int64_t tasks = batch * ((count + per_task - 1) / per_task);
        const int64_t time = (tasks + threads - 1) / threads * per_task;
        if (time < shortest) shortest = time, best = per_task;
    }
    return best;
}

}  // namespace
