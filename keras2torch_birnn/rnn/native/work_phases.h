// Work in phases. Every phase has the same number of parts, and begins when all parts of the phase
// before are done.
#pragma once

#include <atomic>
#include <vector>

#include "pool.h"

class WorkPhases {
public:
    WorkPhases(long phases, long parts) : phases_(phases), parts_(static_cast<size_t>(parts)) {}

    // Call compute(phase, part) for all phases and parts, together with the other threads that call
    // this; return when all are done. `me`: the thread's own part, different for each. A thread
    // computes its own part, whose weights stay in its cache, and steals parts whose thread never came
    // or seems to be descheduled. So any number of threads completes the work.
    template <class Compute>
    void work(long me, Compute compute) {
        const long parts = static_cast<long>(parts_.size());
        for (long phase = done_.load(std::memory_order_acquire) / parts; phase < phases_; ++phase) {
            Part& mine = parts_[static_cast<size_t>(me)];
            if (!mine.present.load(std::memory_order_relaxed)) mine.present.store(true);
            take(phase, me, compute);
            const long all = (phase + 1) * parts;
            for (long turn = 1; done_.load(std::memory_order_acquire) < all; ++turn) {
                for (long other = 0; other < parts; ++other) {
                    Part& part = parts_[static_cast<size_t>(other)];
                    if (turn % PATIENCE == 0) part.present.store(false);
                    if (!part.present.load(std::memory_order_relaxed)) take(phase, other, compute);
                }
                pool::wait_turn(turn, LONG);
            }
        }
    }

private:
    static constexpr long PATIENCE = 200, LONG = 5000;

    struct alignas(64) Part {
        std::atomic<long> begun{0};  // number of phases for which this part was begun
        std::atomic<bool> present{false};
    };

    template <class Compute>
    void take(long phase, long part, Compute& compute) {
        std::atomic<long>& begun = parts_[static_cast<size_t>(part)].begun;
        long expected = phase;
        if (begun.load(std::memory_order_relaxed) != phase ||
            !begun.compare_exchange_strong(expected, phase + 1, std::memory_order_acquire))
            return;
        compute(phase, part);
        done_.fetch_add(1, std::memory_order_acq_rel);
    }

    const long phases_;
    std::vector<Part> parts_;
    alignas(64) std::atomic<long> done_{0};
};
