// The kernels for AVX2: one vector holds 8 channels. Empty on other processors.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
// From here to the end of the file every function may use the instruction set; it is called only where it exists.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define MM_WIDTH 8
#include "scan_forward.h"
#include "scan_backward.h"
#include "deform_body.h"
extern const MmIsa mm_avx2 = {"avx2", forward, backward, deform_forward, deform_backward};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
extern const MmIsa mm_avx2 = {"avx2", nullptr, nullptr, nullptr, nullptr};
#endif
