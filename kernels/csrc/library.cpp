// The functions that Python calls, which has checked the sizes: they check the routes' values, then run the best
// instruction set. And the threads of the kernels.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

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

// The best instruction set that this processor has, of those with this name ("" for any); null if there is none.
const MmIsa* find(const char* name) {
    for (int index = 0; index < kIsas; ++index)
        if ((name[0] == 0 || strcmp(name, kIsa[index]->name) == 0) && supported(index)) return kIsa[index];
    return nullptr;
}

const MmIsa* chosen = nullptr;

const MmIsa& isa() { return *(chosen == nullptr ? (chosen = find("")) : chosen); }

// Every row must visit every position once; anything else would read or write outside the arrays.
int check_routes(const MmScan& s) {
    if (s.routes == nullptr) return MM_OK;
    const int64_t length = s.length;
    unsigned char* seen = (unsigned char*)malloc((size_t)length);
    if (seen == nullptr) return MM_NO_MEMORY;
    bool right = true;
    for (int64_t k = 0; k < s.route_count && right; ++k) {
        memset(seen, 0, (size_t)length);
        for (int64_t l = 0; l < length && right; ++l) {
            const int64_t place = s.routes[k * length + l];
            right = place >= 0 && place < length && !seen[place];
            if (right) seen[place] = 1;
        }
    }
    free(seen);
    return right ? MM_OK : MM_BAD_ROUTE;
}

// Threads for the kernels. Best are torch's own: OpenMP's idle threads spin for a while, so other threads beside them get
// half a core just after every torch operation. kernels/library.py hands over the OpenMP functions that torch
// has loaded. OpenMP hangs in a forked child whose parent has used it, which is how data loaders start their workers;
// there, and where torch has no OpenMP, threads are started for each call.
//
// GOMP_parallel and omp_get_thread_num of the OpenMP library that torch uses, and the process they were found in.
using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OpenMpThread = int (*)();
OpenMpParallel openmp_parallel = nullptr;
OpenMpThread openmp_thread = nullptr;
pid_t openmp_owner = 0;

struct Team {
    std::atomic<int64_t> next;
    int64_t tasks;
    MmTask run;
    void* context;

    void work(int worker) {
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) run(context, task, worker);
    }
};

void team_member(void* data) { static_cast<Team*>(data)->work(openmp_thread()); }

}  // namespace

MM_EXPORT int mm_abi_version() { return MM_ABI_VERSION; }

MM_EXPORT const char* mm_isa_name() { return isa().name; }

// Chooses an instruction set by name ("" for the best); for tests and benchmarks.
MM_EXPORT int mm_choose_isa(const char* name) {
    const MmIsa* const found = find(name);
    if (found != nullptr) chosen = found;
    return found != nullptr ? MM_OK : MM_BAD_ISA;
}

MM_EXPORT int mm_scan_forward(const MmScan* s) {
    const int status = check_routes(*s);
    return status == MM_OK ? isa().forward(s) : status;
}

MM_EXPORT int mm_scan_backward(const MmScanGrad* g) {
    const int status = check_routes(g->s);
    return status == MM_OK ? isa().backward(g) : status;
}

MM_EXPORT int mm_deform_forward(const MmDeform* d) { return isa().deform(d, false); }

MM_EXPORT int mm_deform_backward(const MmDeform* d) { return isa().deform(d, true); }

MM_EXPORT void mm_use_openmp(OpenMpParallel parallel, OpenMpThread thread) {
    openmp_parallel = parallel;
    openmp_thread = thread;
    openmp_owner = getpid();
}

void mm_parallel(int threads, int64_t tasks, MmTask run, void* context) {
    if (threads > tasks) threads = static_cast<int>(tasks);
    Team team{{0}, tasks, run, context};
    if (threads > 1 && openmp_parallel != nullptr && openmp_owner == getpid()) {
        openmp_parallel(team_member, &team, static_cast<unsigned>(threads), 0);
        return;
    }
    std::vector<std::thread> helpers;
    try {
        for (int worker = 1; worker < threads; ++worker) helpers.emplace_back(&Team::work, &team, worker);
    } catch (const std::exception&) {
        // no more threads or memory to be had: go on with those there are
    }
    team.work(0);
    for (std::thread& helper : helpers) helper.join();
}
