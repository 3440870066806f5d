// Work in phases. Every phase has the same number of parts, and begins when all parts of the phase
// before are done.
#pragma once

#include <atomic>
#include <vector>

#include "system.h"

class WorkPhases {
public:
    WorkPhases(int64_t phases, int64_t parts) : phases_(phases), parts_(static_cast<size_t>(parts)) {}

    // Call compute(phase, part) for all phases and parts, together with the other threads that call
    // this; return when all are done. `me`: the thread's own part, different for each. A thread
    // computes its own part, whose weights stay in its cache, and steals parts whose thread never came
    // or seems to be descheduled. So any number of threads completes the work.
    template <class Compute>
    void work(int64_t me, Compute compute) {
        const int64_t parts = static_cast<int64_t>(parts_.size());
        for (int64_t phase = done_.load(std::memory_order_acquire) / parts; phase < phases_; ++phase) {
            Part& mine = parts_[static_cast<size_t>(me)];
            if (!mine.present.load(std::memory_order_relaxed)) mine.present.store(true);
            take(phase, me, compute);
            const int64_t all = (phase + 1) * parts;
            for (int64_t turn = 1; done_.load(std::memory_order_acquire) < all; ++turn) {
                for (int64_t other = 0; other < parts; ++other) {
                    Part& part = parts_[static_cast<size_t>(other)];
                    if (turn % PATIENCE == 0) part.present.store(false);
                    if (!part.present.load(std::memory_order_relaxed)) take(phase, other, compute);
                }
                os::wait_turn(turn, LONG);
            }
        }
    }

private:
    static constexpr int64_t PATIENCE = 200, LONG = 5000;

    struct alignas(64) Part {
        std::atomic<int64_t> begun{0};  // number of phases for which this part was begun
        std::atomic<bool> present{false};
    };

    template <class Compute>
    void take(int64_t phase, int64_t part, Compute& compute) {
        std::atomic<int64_t>& begun = parts_[static_cast<size_t>(part)].begun;
        int64_t expected = phase;
        if (begun.load(std::memory_order_relaxed) != phase ||
            !begun.compare_exchange_strong(expected, phase + 1, std::memory_order_acquire))
            return;
        compute(phase, part);
        done_.fetch_add(1, std::memory_order_acq_rel);
    }

    const int64_t phases_;
    std::vector<Part> parts_;
    alignas(64) std::atomic<int64_t> done_{0};
};
