// Threads that wait for work. The caller of `run` works too, so tasks are done even if no thread
// can be had, and several callers at once share the same threads.
#pragma once

namespace pool {

// Tell the processor that this thread waits for another.
inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

using Function = void (*)(void* context, long index);

// A parallel region of an OpenMP runtime: function(data) on so many threads, the caller's included.
using Region = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// Run on that runtime's threads from now on; null: on our own. Torch's threads look out for work for
// some milliseconds before they sleep. Threads of our own would compete with them for processors
// all that time, and would be woken late themselves.
void use(Region region);

// Call function(context, 0 .. count - 1), each once, on at most `threads` threads with the caller.
void run(long threads, long count, Function function, void* context);

// Call function(context, 0) and function(context, 1), where such calls follow each other closely, by
// the caller and a thread of our own that is looking for work; else as `run`. An OpenMP region ends
// only when all its threads came by, which on a busy machine takes a hundred times as long as these.
void share(long threads, Function function, void* context);

}  // namespace pool
