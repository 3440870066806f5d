// Whether a second thread is worth its while for short calls.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

using Clock = std::chrono::steady_clock;

// Whether several threads gain for calls of about the same work. Where one of them has no processor, a call
// lasts until the scheduler gives it one, dozens of times as long as on one thread: the next calls then run on
// one, twice as many each time. So do they where threads often save less than a fifth.
class ThreadGain {
public:
    // Count a call that runs on one thread instead.
    bool rests() {
        const int64_t left = rest_.load(std::memory_order_relaxed);
        if (left > 0) rest_.store(left - 1, std::memory_order_relaxed);
        return left > 0;
    }

    // A call took `all`, its tasks `total` in sum, of which the caller did `own`.
    void note(Clock::duration all, Clock::duration total, Clock::duration own) {
        const bool good = 10 * total >= 12 * all, stalled = own.count() > 0 && has_stalled(all, own, good);
        const int64_t poor = std::max(poor_.load(std::memory_order_relaxed) + (good ? -1 : 1), int64_t{0});
        const int64_t next = next_rest_.load(std::memory_order_relaxed);
        poor_.store(poor, std::memory_order_relaxed);
        if (stalled || poor >= POOR) {
            poor_.store(0, std::memory_order_relaxed);
            rest_.store(next, std::memory_order_relaxed);
            next_rest_.store(std::min(2 * next, LONGEST), std::memory_order_relaxed);
        } else if (good && next > SHORTEST) {
            next_rest_.store(next - 1, std::memory_order_relaxed);
        }
    }

    // Whether the call waited for a processor. A slice of the scheduler is many times a short call; of longer calls
    // it is one that did not gain, and the second such call of SOON: any thread is late at times.
    bool has_stalled(Clock::duration all, Clock::duration own, bool gained) {
        if (all > 16 * own) return true;
        const int64_t before = since_late_.load(std::memory_order_relaxed);
        const bool late = !gained && all - own > std::chrono::milliseconds{1} && all > 2 * own;
        since_late_.store(late ? 0 : std::min(before + 1, SOON), std::memory_order_relaxed);
        return late && before < SOON;
    }

private:
    static constexpr int64_t POOR = 6, SHORTEST = 64, LONGEST = 10000, SOON = 256;
    std::atomic<int64_t> rest_{0}, next_rest_{SHORTEST}, poor_{0}, since_late_{SOON};
};
