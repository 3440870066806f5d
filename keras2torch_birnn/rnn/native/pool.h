// A pool of threads. The caller of `run` works too, so the tasks are completed even if no thread can be
// created. Concurrent callers use the same threads.
#pragma once

namespace pool {

// Tell the processor that this is a spin-wait loop.
inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

using Function = void (*)(void* context, long index);

// GOMP_parallel of an OpenMP runtime: call function(data) on `threads` threads, the caller included.
using Region = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// Run on the threads of that runtime from now on; null: on our own. Torch's threads spin for some
// milliseconds before they sleep. Threads of our own would compete with them for processors all that
// time, and would wake late themselves.
void use(Region region);

// Call function(context, 0 .. count - 1), each once, on at most `threads` threads with the caller.
void run(long threads, long count, Function function, void* context);

// Call function(context, 0) and function(context, 1). During a burst of such calls the caller does the
// first and a spinning thread of our own the second; else as `run`. An OpenMP region ends only when
// all its threads have arrived, which on a busy machine takes a hundred times as long as these tasks.
void run_pair(long threads, Function function, void* context);

}  // namespace pool
