// The functions of kernel.h: choose the instruction set, cut a call into tasks, run them.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <cstring>
#include <new>
#include <numeric>
#include <vector>

#include "isa.h"
#include "pool.h"

namespace {

enum InstructionSet : int64_t { PLAIN = 1, AVX2 = 2, AVX512 = 4 };

const K2tKernel& kernel(int64_t isa) {
#if defined(__x86_64__)
    if (isa == AVX512) return k2t_avx512;
    if (isa == AVX2) return k2t_avx2;
#endif
    (void)isa;
    return k2t_plain;
}

// A thread's scratch: grows to what its largest task needs, goes with the thread.
class Memory {
public:
    float* at_least(long floats) {
        if (floats > size_) {
            std::free(data_);
            size_ = 0;
            const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
            data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
            if (data_) size_ = floats;
        }
        return data_;
    }
    ~Memory() { std::free(data_); }

private:
    float* data_ = nullptr;
    long size_ = 0;
};

thread_local Memory memory;

struct Run {
    const K2tKernel& kernel;
    const K2tCall& call;
    std::vector<int64_t> order;
    long blocks;  // of the batch, per direction
    std::vector<uint8_t> visits;
    std::atomic<bool> failed{false};

    void task(long index) {
        const long block = index / call.directions;
        const long rows = static_cast<long>(order.size());
        const K2tTask task{index % static_cast<long>(call.directions), order.data(), block, blocks,
                           (rows - block + blocks - 1) / blocks, visits.data()};
        float* scratch = memory.at_least(kernel.scratch_size(call.shape, task.count));
        if (scratch)
            kernel.run(call, task, scratch);
        else
            failed = true;
    }
};

// Rows of one task at most: their states and sums stay in cache.
constexpr long MOST_ROWS = 64;
// Products of units, inputs and steps below which one thread does it all. A second one would save a
// tenth of a millisecond at most, and costs many if it has to wait for a processor.
constexpr double SMALL = 1.5e6;

}  // namespace

extern "C" {

int64_t k2t_instruction_sets() {
    int64_t found = PLAIN;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        found |= AVX2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
            found |= AVX512;
    }
#endif
    return found;
}

int64_t k2t_packed_size(int64_t isa, const K2tShape* shape) {
    return kernel(isa).packed_size(*shape);
}

void k2t_pack(int64_t isa, const K2tShape* shape, const float* weight_ih, const float* weight_hh,
              const float* bias_ih, const float* bias_hh, float* packed) {
    kernel(isa).pack(*shape, weight_ih, weight_hh, bias_ih, bias_hh, packed);
}

int64_t k2t_same(const float* a, const float* b, int64_t count) {
    return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

void k2t_use_threads_of(void* gomp_parallel) {
    pool::use(reinterpret_cast<pool::Region>(gomp_parallel));
}

int64_t k2t_run(int64_t isa, const K2tCall* call) try {
    std::vector<int64_t> order(static_cast<size_t>(call->batch));
    std::iota(order.begin(), order.end(), 0);
    if (const int64_t* lengths = call->lengths)
        std::stable_sort(order.begin(), order.end(),
                         [=](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    const double work = static_cast<double>(call->batch * call->time * call->directions) *
                        static_cast<double>(call->shape.units) *
                        static_cast<double>(call->shape.units + call->shape.features);
    const int64_t threads = work < SMALL ? 1 : std::max<int64_t>(call->threads, 1);
    // Enough blocks of rows for all threads, and none too large.
    const int64_t wanted = std::max((threads + call->directions - 1) / call->directions,
                                    (call->batch + MOST_ROWS - 1) / MOST_ROWS);
    const bool merged = call->merge != K2T_APART && call->directions == 2;
    Run run{kernel(isa), *call, std::move(order), std::min(wanted, call->batch),
            std::vector<uint8_t>(static_cast<size_t>(merged ? call->batch * call->time : 0))};
    pool::run(threads, run.blocks * call->directions,
              [](void* context, long index) { static_cast<Run*>(context)->task(index); }, &run);
    return run.failed ? 1 : 0;
} catch (const std::bad_alloc&) {
    return 1;
}
}
