// The arithmetic floor of the scan on this processor: its operations with everything in registers, and nothing else.
// Compiled by kernels_cpu.py with the flags of the kernels, once per vector width (-DMM_WIDTH).
#include <stdint.h>
#if MM_WIDTH > 4
#include <immintrin.h>
#endif
#include "vec.h"

// Per update: one power of two with its argument, h = a h + du b, y += h c (two products, two multiply-adds).
extern "C" float mm_floor_scan(int64_t rounds) {
    vf h[8], A2[8], y[2] = {vf{}, vf{}}, step = all(0.01f);
    const vf input = all(0.5f), b = all(0.25f), c = all(0.125f);
    for (int i = 0; i < 8; ++i) h[i] = all(0.1f * i), A2[i] = all(-1.0f - i);
    for (int64_t round = 0; round < rounds; ++round) {
        step = step + 1e-9f;  // so that nothing can be computed once for all rounds
        vf du = input * step;
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            const Power p = power_of_two<true>(step * A2[i]);
            h[i] = p.factor * (p.scale * h[i]) + du * b;
            du = du + c;  // B differs from state to state
            y[i & 1] += h[i] * c;
        }
    }
    return (y[0] + y[1])[0];
}

extern "C" float mm_floor_exp(int64_t rounds) {
    vf sum[8], t = all(-0.01f);
    for (int i = 0; i < 8; ++i) sum[i] = vf{};
    for (int64_t round = 0; round < rounds; ++round) {
        t = t - 1e-9f;
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            const Power p = power_of_two<true>(t - (float)i);
            sum[i] += p.factor * p.scale;
        }
    }
    vf total = vf{};
    for (int i = 0; i < 8; ++i) total += sum[i];
    return total[0];
}
