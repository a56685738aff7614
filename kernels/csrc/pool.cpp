// Threads for the kernels. Best are torch's own: OpenMP's idle threads spin for a while, so other threads beside them get
// half a core just after every torch operation. medmamba/kernels/library.py hands over the OpenMP functions that torch
// has loaded. OpenMP hangs in a forked child whose parent has used it, which is how data loaders start their workers;
// there, and where torch has no OpenMP, threads are started for each call.
#include "abi.h"

#include <atomic>
#include <exception>
#include <thread>
#include <vector>
#include <unistd.h>

namespace {

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

extern "C" MM_EXPORT void mm_use_openmp(OpenMpParallel parallel, OpenMpThread thread) {
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
