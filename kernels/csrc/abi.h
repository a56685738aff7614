// The C interface of the CPU kernels: plain structs and functions, read by ctypes in kernels/library.py; and
// declarations shared by the files here: the table of an instruction set, tiles, threads.
// Any change of a struct or of a meaning below raises MM_ABI_VERSION; the loader refuses another version.
#pragma once
#include <stdint.h>

#define MM_ABI_VERSION 3

#define MM_EXPORT extern "C" __attribute__((visibility("default")))

enum MmStatus {
    MM_OK = 0,
    MM_NO_MEMORY = 1,      // scratch could not be allocated
    MM_BAD_ROUTE = 2,      // a row of the route table is not a permutation of 0..L-1
    MM_BAD_ISA = 4,        // this processor cannot run the instruction set that was chosen
};

// All arrays are float32, contiguous, in spatial order, channels last.
// b = batch, l = position, k = route, d = channel, n = state.
struct MmScan {
    int64_t batch, length, route_count, channels, states;
    int32_t softplus;    // 1: step = softplus(dt + dt_bias), 0: step = dt + dt_bias
    int32_t merge;       // 1: y is (b, l, d), summed over routes; 0: y is (b, l, k, d)
    int32_t x_per_route; // 1: x is (b, l, k, d); 0: x is (b, l, d), shared by all routes
    int32_t threads;
    const float* x;
    const float* dt;     // (b, l, k, d)
    const float* A;      // (k, d, n)
    const float* B;      // (b, l, k, n)
    const float* C;      // (b, l, k, n)
    const float* D;      // (k, d) or null
    const float* dt_bias;  // (k, d) or null
    const int32_t* routes; // (k, l) or null for raster order
    const float* initial_state;  // (b, k, d, n) or null for zeros
    const float* z;      // shape of y, or null: y is multiplied by silu(z)
    const int32_t* segments;  // (b, l), or null: the state is reset to zero where a visit's value differs from the last one's
    float* y;
    float* plain;        // null, or y before the gate, which the backward pass needs if there is one
    float* last_state;   // (b, k, d, n) or null: the state after the last position
    float* saved_states; // null, or the states at the start of each tile: (b, k, tiles, padded d, n), see MM_TILE and MM_PAD
};

struct MmScanGrad {
    struct MmScan s;     // the same inputs; y is not read, saved_states and plain are
    const float* dy;     // shape of y
    const float* dlast_state;  // shape of last_state or null
    float *dx, *ddt, *dA, *dB, *dC;
    float *dD, *ddt_bias, *dinitial_state, *dz;  // or null
};

// Deformable convolution. Axes are z, y, x; in two dimensions the sizes of z are 1 and its padding 0.
struct MmDeform {
    int64_t batch, groups, group_channels;
    int64_t columns;                 // of offset_mask
    int64_t image[3], output[3], kernel[3], stride[3], padding[3], dilation[3];
    int32_t dimensions, remove_center, threads;
    float scale;
    const float* value;              // (b, image, groups * group_channels)
    const float* offset_mask;        // (b, output, columns)
    float* out;                      // (b, output, groups * group_channels)
    const float* dout;
    float* dvalue;
    float* doffset_mask;
};

// What one instruction set provides.
struct MmIsa {
    const char* name;
    int (*forward)(const struct MmScan*);
    int (*backward)(const struct MmScanGrad*);
    int (*deform)(const struct MmDeform*, bool backward);
};

// Length of a time tile; states are saved once per tile.
#define MM_TILE 32
// Channels are padded to a multiple of this in `saved_states`, whatever the vector width.
#define MM_PAD 16

typedef void (*MmTask)(void* context, int64_t task, int worker);

// Calls run(context, i, worker) for i = 0..tasks-1 on up to `threads` threads, worker < threads, and waits for all.
// Which thread runs a task is not determined, so a task's result may not depend on it.
void mm_parallel(int threads, int64_t tasks, MmTask run, void* context);
