// The kernels for AVX-512: one vector holds 16 channels. Empty on other processors.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
// From here to the end of the file every function may use the instruction set; it is called only where it exists.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#define MM_WIDTH 16
#include "scan_forward.h"
#include "scan_backward.h"
#include "deform_body.h"
extern const MmIsa mm_avx512 = {"avx512", forward, backward, deform_forward, deform_backward};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
extern const MmIsa mm_avx512 = {"avx512", nullptr, nullptr, nullptr, nullptr};
#endif
