// Threads for the kernels. Best are torch's own: OpenMP's idle threads spin for a while, so a second pool beside it gets
// half a core just after every torch operation. medmamba/kernels/library.py hands over the OpenMP functions that torch
// has loaded. OpenMP hangs in a forked child whose parent has used it, which is how data loaders start their workers;
// there, and where torch has no OpenMP, a small pool of our own works, which sees that it belongs to another process
// and starts anew.
#include "pool.h"

#include "abi.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#if defined(_WIN32)
#include <process.h>
#define MM_GETPID _getpid
#else
#include <unistd.h>
#define MM_GETPID getpid
#endif

namespace {

constexpr int kMaxHelpers = 255;
constexpr int kSpins = 1500;  // some 20 microseconds of waiting before a thread goes to sleep

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

class Pool {
   public:
    const long owner = static_cast<long>(MM_GETPID());

    void run_all(int threads, int64_t tasks, MmTask run, void* context) {
        std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
        if (alone.owns_lock()) start_helpers(threads - 1);
        if (!alone.owns_lock() || helpers_ == 0) {  // another caller has the pool: do the work here
            for (int64_t task = 0; task < tasks; ++task) run(context, task, 0);
            return;
        }
        run_ = run;
        context_ = context;
        tasks_ = tasks;
        wanted_ = threads - 1 < helpers_ ? threads - 1 : helpers_;
        next_.store(0, std::memory_order_relaxed);
        running_.store(helpers_, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> guard(lock_);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        work(0);
        // Every helper answers every round, so that no late one can meet the next round's tasks.
        for (int spin = 0; running_.load(std::memory_order_acquire) != 0; ++spin) {
            if (spin < kSpins) relax();
            else std::this_thread::yield();
        }
    }

   private:
    void work(int worker) {
        for (;;) {
            const int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
            if (task >= tasks_) return;
            run_(context_, task, worker);
        }
    }

    void help(int index, uint64_t seen) {
        for (;;) {
            for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; ++spin) relax();
            if (round_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> guard(lock_);
                wake_.wait(guard, [&] { return round_.load(std::memory_order_acquire) != seen; });
            }
            ++seen;
            if (index < wanted_) work(index + 1);
            running_.fetch_sub(1, std::memory_order_release);
        }
    }

    void start_helpers(int count) {
        if (count > kMaxHelpers) count = kMaxHelpers;
        while (helpers_ < count) {
            const int index = helpers_;
            const uint64_t seen = round_.load(std::memory_order_acquire);
            try {
                std::thread([this, index, seen] { help(index, seen); }).detach();
            } catch (const std::system_error&) {
                return;  // no more threads to be had: go on with those there are
            }
            ++helpers_;
        }
    }

    std::mutex busy_;  // held by the caller whose tasks are running
    std::mutex lock_;
    std::condition_variable wake_;
    std::atomic<uint64_t> round_{0};
    std::atomic<int64_t> next_{0};
    std::atomic<int> running_{0};
    int helpers_ = 0;  // threads started
    int wanted_ = 0;   // of them, those that take tasks in this round
    int64_t tasks_ = 0;
    MmTask run_ = nullptr;
    void* context_ = nullptr;
};

std::atomic<Pool*> the_pool{nullptr};

Pool* pool_of_this_process() {
    Pool* pool = the_pool.load(std::memory_order_acquire);
    if (pool != nullptr && pool->owner == static_cast<long>(MM_GETPID())) return pool;
    // After a fork the parent's threads do not exist here and its locks may be held for ever: leave it behind.
    Pool* fresh = new (std::nothrow) Pool;
    if (fresh == nullptr || the_pool.compare_exchange_strong(pool, fresh)) return fresh;
    delete fresh;
    return pool;
}

// GOMP_parallel and omp_get_thread_num of the OpenMP library that torch uses, and the process they were found in.
using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OpenMpThread = int (*)();
OpenMpParallel openmp_parallel = nullptr;
OpenMpThread openmp_thread = nullptr;
long openmp_owner = 0;

struct Team {
    std::atomic<int64_t> next;
    int64_t tasks;
    MmTask run;
    void* context;
};

void team_member(void* data) {
    Team& team = *static_cast<Team*>(data);
    const int worker = openmp_thread();
    for (int64_t task; (task = team.next.fetch_add(1, std::memory_order_relaxed)) < team.tasks;)
        team.run(team.context, task, worker);
}

}  // namespace

extern "C" MM_EXPORT void mm_use_openmp(OpenMpParallel parallel, OpenMpThread thread) {
    openmp_parallel = parallel;
    openmp_thread = thread;
    openmp_owner = static_cast<long>(MM_GETPID());
}

void mm_parallel(int threads, int64_t tasks, MmTask run, void* context) {
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (threads > 1 && openmp_parallel != nullptr && openmp_owner == static_cast<long>(MM_GETPID())) {
        Team team{{0}, tasks, run, context};
        openmp_parallel(team_member, &team, static_cast<unsigned>(threads), 0);
        return;
    }
    Pool* pool = threads > 1 ? pool_of_this_process() : nullptr;
    if (pool == nullptr) {
        for (int64_t task = 0; task < tasks; ++task) run(context, task, 0);
        return;
    }
    pool->run_all(threads, tasks, run, context);
}
