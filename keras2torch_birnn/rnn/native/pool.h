// A pool of threads. The caller of `run` works too, so the tasks are completed even if no thread can be
// created. Concurrent callers use the same threads.
#pragma once

#include <cstdint>

namespace pool {

using Function = void (*)(void* context, int64_t index);

// GOMP_parallel of an OpenMP runtime: call function(data) on `threads` threads, the caller included.
using Region = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// Run on the threads of that runtime from now on; null: on our own. Torch's threads spin for some
// milliseconds before they sleep. Threads of our own would compete with them for processors all that
// time, and would wake late themselves.
void use(Region region);

// Call function(context, 0 .. count - 1), each once, on at most `threads` threads with the caller.
void run(int64_t threads, int64_t count, Function function, void* context);

}  // namespace pool
