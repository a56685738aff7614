// The functions that Python calls: they check what could read out of bounds, then run the best instruction set.
#include <stdlib.h>
#include <string.h>

#include "abi.h"

extern const MmIsa mm_avx512, mm_avx2, mm_base;

namespace {

enum { kIsas = 3 };
const MmIsa* const kIsa[kIsas] = {&mm_avx512, &mm_avx2, &mm_base};

bool supported(int index) {
    if (kIsa[index]->forward == nullptr) return false;
#if defined(__x86_64__) && defined(__GNUC__)
    if (index == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (index == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return true;
}

int best() {
    for (int index = 0; index < kIsas; ++index)
        if (supported(index)) return index;
    return kIsas - 1;
}

int chosen = -1;

const MmIsa& isa() { return *kIsa[chosen < 0 ? (chosen = best()) : chosen]; }

// Every row must visit every position once; anything else would read or write outside the arrays.
int check_routes(const int32_t* routes, int64_t count, int64_t length) {
    if (routes == nullptr) return MM_OK;
    unsigned char* seen = (unsigned char*)malloc((size_t)length);
    if (seen == nullptr) return MM_NO_MEMORY;
    int status = MM_OK;
    for (int64_t k = 0; k < count && status == MM_OK; ++k) {
        memset(seen, 0, (size_t)length);
        for (int64_t l = 0; l < length; ++l) {
            const int64_t place = routes[k * length + l];
            if (place < 0 || place >= length || seen[place]) {
                status = MM_BAD_ROUTE;
                break;
            }
            seen[place] = 1;
        }
    }
    free(seen);
    return status;
}

int check(const MmScan& s) {
    const int64_t sizes[] = {s.batch, s.length, s.route_count, s.channels, s.states};
    int64_t product = 1;
    for (int64_t size : sizes) {
        if (size < 1 || size > (int64_t(1) << 40) || product > (int64_t(1) << 50) / size) return MM_BAD_SHAPE;
        product *= size;
    }
    if (s.length > INT32_MAX) return MM_BAD_SHAPE;
    return check_routes(s.routes, s.route_count, s.length);
}

int check(const MmDeform& d) {
    if (d.dimensions != 2 && d.dimensions != 3) return MM_BAD_SHAPE;
    int64_t taps = 1;
    if (d.batch < 1 || d.groups < 1 || d.group_channels < 1) return MM_BAD_SHAPE;
    for (int axis = 0; axis < 3; ++axis) {
        if (d.image[axis] < 1 || d.kernel[axis] < 1 || d.stride[axis] < 1 || d.padding[axis] < 0 ||
            d.dilation[axis] < 1 || d.image[axis] > (1 << 30) || d.kernel[axis] > (1 << 10))
            return MM_BAD_SHAPE;
        const int64_t reach = d.dilation[axis] * (d.kernel[axis] - 1) + 1;
        if ((d.image[axis] + 2 * d.padding[axis] - reach) / d.stride[axis] + 1 != d.output[axis] || d.output[axis] < 1)
            return MM_BAD_SHAPE;
        taps *= d.kernel[axis];
    }
    taps -= d.remove_center ? 1 : 0;
    return taps < 1 || d.columns < d.groups * taps * (d.dimensions + 1) ? MM_BAD_SHAPE : MM_OK;
}

}  // namespace

MM_EXPORT int mm_abi_version() { return MM_ABI_VERSION; }

// What setuptools expects an extension module to export on Windows; nothing imports it.
MM_EXPORT void* PyInit__cpu() { return nullptr; }

MM_EXPORT const char* mm_isa_name() { return isa().name; }

// Chooses an instruction set by name ("" for the best); for tests and benchmarks.
MM_EXPORT int mm_choose_isa(const char* name) {
    if (name[0] == 0) {
        chosen = best();
        return MM_OK;
    }
    for (int index = 0; index < kIsas; ++index)
        if (strcmp(name, kIsa[index]->name) == 0 && supported(index)) {
            chosen = index;
            return MM_OK;
        }
    return MM_BAD_ISA;
}

MM_EXPORT int mm_scan_forward(const MmScan* s) {
    const int status = check(*s);
    return status == MM_OK ? isa().forward(s) : status;
}

MM_EXPORT int mm_scan_backward(const MmScanGrad* g) {
    const int status = check(g->s);
    return status == MM_OK ? isa().backward(g) : status;
}

MM_EXPORT int mm_deform_forward(const MmDeform* d) { return check(*d) == MM_OK ? isa().deform_forward(d) : check(*d); }

MM_EXPORT int mm_deform_backward(const MmDeform* d) { return check(*d) == MM_OK ? isa().deform_backward(d) : check(*d); }
