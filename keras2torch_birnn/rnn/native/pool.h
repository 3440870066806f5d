// A pool of threads. The caller of `run` works too, so the tasks are completed even if no thread can be
// created. Concurrent callers use the same threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "system.h"

namespace pool {

using Clock = std::chrono::steady_clock;

// Which calls of several threads wait for one without a processor. A slice of the scheduler is many times a short
// call; of longer calls it is one that did not gain, and the second such call of SOON: any thread is late at times.
class StallWatch {
public:
    // A call took `all`, the caller's own tasks `own`; `gained` says whether several threads saved time.
    bool has_stalled(Clock::duration all, Clock::duration own, bool gained) {
        if (all > 16 * own) return true;
        const int64_t before = since_.load(std::memory_order_relaxed);
        const bool late = !gained && all - own > std::chrono::milliseconds{1} && all > 2 * own;
        since_.store(late ? 0 : std::min(before + 1, SOON), std::memory_order_relaxed);
        return late && before < SOON;
    }

private:
    static constexpr int64_t SOON = 256;
    std::atomic<int64_t> since_{SOON};
};

// Tell the processor that this is a spin-wait loop. Static: each file has its own, compiled with its
// own flags.
#if defined(__x86_64__)
static inline void relax() { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
static inline void relax() { asm volatile("yield"); }
#else
static inline void relax() {}
#endif

// A turn of a loop that waits for another thread: spin, but from the `patience`-th turn on give the
// processor away. That thread may need it: where there are more threads than processors, or where one
// of a higher priority waits for one of a lower.
static inline void wait_turn(int64_t turn, int64_t patience) { turn < patience ? relax() : os::yield(); }

using Function = void (*)(void* context, int64_t index);

// GOMP_parallel of an OpenMP runtime: call function(data) on `threads` threads, the caller included.
using Region = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

// Run on the threads of that runtime from now on; null: on our own. Torch's threads spin for some
// milliseconds before they sleep. Threads of our own would compete with them for processors all that
// time, and would wake late themselves.
void use(Region region);

// Call function(context, 0 .. count - 1), each once, on at most `threads` threads with the caller.
void run(int64_t threads, int64_t count, Function function, void* context);

// A call that two threads may share by `run_pair` as long as this lives, if it is part of a burst.
class ShortCall {
public:
    // Count the call if it is `counted`; others are in no burst.
    explicit ShortCall(bool counted);
    ~ShortCall();
    ShortCall(const ShortCall&) = delete;
    ShortCall& operator=(const ShortCall&) = delete;

    bool in_burst() const { return in_burst_; }

private:
    const bool counted_;
    bool in_burst_;
};

// In a burst: call function(context, 0) and function(context, 1), the second on a spinning thread of
// our own if it is there. An OpenMP region ends only when all its threads have arrived, which on a busy
// machine takes a hundred times as long as these tasks. But where other work of torch keeps its threads
// awake, they are used as in `run`, all `threads` of them: each way is left where it fails.
void run_pair(int64_t threads, Function function, void* context);

}  // namespace pool
