// The functions of kernel.h: choose the instruction set, cut a call into tasks, run them.
#include <algorithm>
#include <atomic>
#include <cstdlib>
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

// A run or a gradient, cut into tasks: each direction by blocks of rows.
struct Tasks {
    long directions;
    std::vector<int64_t> order;  // rows by falling length
    long blocks;
    std::vector<uint8_t> visits;

    template <class Call>
    Tasks(const Call& call, long threads)
        : directions(static_cast<long>(call.directions)), order(static_cast<size_t>(call.batch)) {
        std::iota(order.begin(), order.end(), 0);
        if (const int64_t* lengths = call.lengths)
            std::stable_sort(order.begin(), order.end(),
                             [=](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
        // Enough blocks of rows for all threads, and none too large.
        const int64_t wanted = std::max((threads + call.directions - 1) / call.directions,
                                        (call.batch + MOST_ROWS - 1) / MOST_ROWS);
        blocks = static_cast<long>(std::min(wanted, call.batch));
    }

    // Compute all of them with scratch of the size that `floats` tells for a number of rows. False
    // if there is no memory for it.
    template <class Size, class Compute>
    bool run(long threads, Size floats, Compute compute) {
        struct Context {
            Tasks& tasks;
            Size& floats;
            Compute& compute;
            std::atomic<bool> failed{false};
        } context{*this, floats, compute};
        pool::run(threads, blocks * directions,
                  [](void* data, long index) {
                      Context& c = *static_cast<Context*>(data);
                      Tasks& all = c.tasks;
                      const long block = index / all.directions;
                      const long rows = static_cast<long>(all.order.size());
                      const K2tTask task{index % all.directions, all.order.data(), block,
                                         all.blocks, (rows - block + all.blocks - 1) / all.blocks,
                                         all.visits.data()};
                      float* scratch = memory.at_least(c.floats(task.count));
                      if (scratch)
                          c.compute(task, scratch);
                      else
                          c.failed = true;
                  },
                  &context);
        return !context.failed;
    }
};

// Products of units, inputs and steps below which one thread does it all. A second one would save a
// tenth of a millisecond at most, and costs many if it has to wait for a processor.
constexpr double SMALL = 1.5e6;

template <class Call>
long threads_for(const Call& call, int64_t features) {
    const double work = static_cast<double>(call.batch * call.time * call.directions) *
                        static_cast<double>(call.shape.units) *
                        static_cast<double>(call.shape.units + features);
    return work < SMALL ? 1 : static_cast<long>(std::max<int64_t>(call.threads, 1));
}

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
    const K2tKernel& with = kernel(isa);
    const long threads = threads_for(*call, call->shape.features);
    Tasks tasks(*call, threads);
    if (call->merge != K2T_APART && call->directions == 2)
        tasks.visits.resize(static_cast<size_t>(call->batch * call->time));
    return !tasks.run(
        threads, [&](long rows) { return with.scratch_size(call->shape, rows); },
        [&](const K2tTask& task, float* scratch) { with.run(*call, task, scratch); });
} catch (const std::bad_alloc&) {
    return 1;
}

int64_t k2t_width(int64_t isa, int64_t units) {
    const int64_t lanes = kernel(isa).lanes;
    return (units + lanes - 1) / lanes * lanes;
}

int64_t k2t_kept_parts(int64_t kind) { return k2t_plain.kept_parts(kind); }

int64_t k2t_gradient_packed_size(int64_t isa, const K2tShape* shape) {
    return kernel(isa).gradient_packed_size(*shape);
}

void k2t_gradient_pack(int64_t isa, const K2tShape* shape, const float* weight_hh, float* packed) {
    kernel(isa).gradient_pack(*shape, weight_hh, packed);
}

int64_t k2t_gradient(int64_t isa, const K2tGradient* call) try {
    const K2tKernel& with = kernel(isa);
    const long threads = threads_for(*call, 0);
    return !Tasks(*call, threads)
                .run(
                    threads, [&](long rows) { return with.gradient_scratch_size(call->shape, rows); },
                    [&](const K2tTask& task, float* scratch) {
                        with.gradient_run(*call, task, scratch);
                    });
} catch (const std::bad_alloc&) {
    return 1;
}
}
