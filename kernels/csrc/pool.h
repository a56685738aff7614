// Threads for the kernels: run a number of independent tasks and wait for all of them.
#pragma once
#include <stdint.h>

typedef void (*MmTask)(void* context, int64_t task, int worker);

// Calls run(context, i, worker) for i = 0..tasks-1 on up to `threads` threads; worker < threads.
// Which thread runs a task is not determined, so a task's result may not depend on it.
void mm_parallel(int threads, int64_t tasks, MmTask run, void* context);
