// The functions of kernel.h: choose the instruction set, cut a call into tasks, run them.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <deque>
#include <exception>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "isa.h"
#include "memory.h"
#include "pool.h"
#include "system.h"
#include "thread_gain.h"
#include "work_phases.h"

namespace {

// ---- the processor, by the table of processors.h ----------------------------------------------------

constexpr int64_t REGISTERS = 6;  // of CPUID, then XCR0, in the table's order
constexpr uint64_t TILES = uint64_t{1} << 18;  // in XCR0: a system asks for permission to use them

struct Row {
    const K2tKernel* kernel;
    uint64_t needs[REGISTERS];
};

#define K2T_ANYWHERE(kernel) &kernel
#if defined(__x86_64__)
#define K2T_X86(kernel) &kernel
#else
#define K2T_X86(kernel) nullptr
#endif
#define K2T_ROW(constant, kernel, name, where, ...) {where(kernel), {__VA_ARGS__}},
const Row ROWS[] = {K2T_KERNELS(K2T_ROW)};

// Read what the processor and the system say of themselves.
#if defined(__x86_64__)
void read_registers(uint64_t (&found)[REGISTERS]) {
    constexpr uint64_t SAVES = 1 << 27;  // of CPUID 1.0 ecx: there is an XCR0
    unsigned a, b, c, d;
    if (__get_cpuid_count(1, 0, &a, &b, &c, &d)) found[0] = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) found[1] = b, found[2] = c, found[3] = d;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) found[4] = a;
    if (found[0] & SAVES) {
        unsigned low, high;
        asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        found[5] = uint64_t{high} << 32 | low;
    }
}
#else
void read_registers(uint64_t (&)[REGISTERS]) {}
#endif

int64_t find_instruction_sets() {
    uint64_t has[REGISTERS] = {};
    read_registers(has);
    int64_t found = 0, next = 1;
    for (const Row& row : ROWS) {
        bool all = row.kernel && row.kernel->run;
        for (int64_t i = 0; i < REGISTERS; ++i) all = all && (has[i] & row.needs[i]) == row.needs[i];
        if (all && (!(row.needs[5] & TILES) || os::may_use_tiles())) found |= next;
        next *= 2;
    }
    return found;
}

int64_t instruction_sets() {
    static const int64_t found = find_instruction_sets();
    return found;
}

}  // namespace

const K2tKernel* k2t_kernel(int64_t isa) {
    if (isa <= 0 || (isa & (isa - 1)) || !(isa & instruction_sets())) return nullptr;
    return ROWS[__builtin_ctzll(static_cast<uint64_t>(isa))].kernel;
}

namespace {

// Whether a layer of this shape is known to an instruction set, which is null if it is unknown itself.
bool knows_shape(const K2tKernel* with, const K2tShape& shape) {
    return with && k2t_knows(shape.kind, K2T_KINDS);
}

// Whether a call's layer is known: its cell and the number of directions.
bool knows_layer(const K2tKernel* with, const K2tCall& call) {
    return knows_shape(with, call.shape) && k2t_knows(call.activation, K2T_ACTIVATIONS) &&
           k2t_knows(call.recurrent_activation, K2T_ACTIVATIONS) && k2t_knows(call.directions - 1, 2);
}

thread_local Memory memory;

#ifdef K2T_SHARE_ALL  // tests/native/share_out.cpp: any work is enough for all threads
constexpr double SMALL = 0, LARGE = 0, SPLIT_WEIGHTS = 1, CACHE_WEIGHTS = 1;
#else
// Work of a call, in multiply-adds per gate. Below SMALL: one thread. From SMALL on: torch's threads; below
// LARGE, where a lost processor costs many times the call, only as long as they gain.
constexpr double SMALL = 1.5e6, LARGE = 1e8;

// Recurrent weights of one direction. From SPLIT_WEIGHTS on, splitting the units of a single row
// between threads pays off; from CACHE_WEIGHTS on, they no longer fit into a core's second-level cache.
constexpr double SPLIT_WEIGHTS = 3e4, CACHE_WEIGHTS = 4.2e5;
#endif

// Of calls with this work; null for those that are as short or as long that nothing is to be learned.
ThreadGain* gain_of(double work) {
    static ThreadGain gains[8];
    if (work < SMALL || work >= LARGE) return nullptr;
    return gains + std::clamp(std::ilogb(work / SMALL), 0, 7);
}

struct Team {
    int64_t threads;  // number of torch's threads that pay off
    ThreadGain* gain;
    bool rests;  // the tasks are those of all threads, so the numbers are, but one does them

    void run(int64_t count, pool::Function task, void* context) const {
        if (rests || !gain || count < 2) return pool::run(rests ? 1 : threads, count, task, context);
        static thread_local char here;
        struct Timed {
            pool::Function task;
            void* context;
            const char* caller;
            std::atomic<Clock::rep> total{0}, own{0};
        } timed{task, context, &here};
        const auto begun = Clock::now();
        pool::run(threads, count,
                  [](void* data, int64_t index) {
                      Timed& each = *static_cast<Timed*>(data);
                      const auto before = Clock::now();
                      each.task(each.context, index);
                      const auto spent = (Clock::now() - before).count();
                      each.total.fetch_add(spent, std::memory_order_relaxed);
                      if (each.caller == &here) each.own.fetch_add(spent, std::memory_order_relaxed);
                  },
                  &timed);
        gain->note(Clock::now() - begun, Clock::duration{timed.total.load()}, Clock::duration{timed.own.load()});
    }
};

Team team_for(const K2tCall& call) {
    const int64_t steps = call.lengths
                              ? std::accumulate(call.lengths, call.lengths + call.batch, int64_t{0})
                              : call.batch * call.time;
    const double work = static_cast<double>(steps * call.directions) *
                        static_cast<double>(call.shape.units) *
                        static_cast<double>(call.shape.units + call.shape.features);
    const int64_t threads = work < SMALL ? 1 : std::max<int64_t>(call.threads, 1);
    // In training, torch's own threads compute before and after this call.
    ThreadGain* const gain = call.kept[0] || threads < 2 ? nullptr : gain_of(work);
    return {threads, gain, gain && gain->rests()};
}

// The tasks of a run or a gradient: each direction, in blocks of rows.
struct Tasks {
    Team team;
    int64_t directions;
    std::vector<int64_t> order;  // rows by falling length
    int64_t blocks;
    std::vector<uint8_t> visits;

    Tasks(const K2tCall& call, const K2tKernel& with, Team team)
        : team(team), directions(call.directions), order(static_cast<size_t>(call.batch)) {
        std::iota(order.begin(), order.end(), 0);
        if (const int64_t* lengths = call.lengths)
            std::stable_sort(order.begin(), order.end(),
                             [=](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
        // Enough blocks of rows for all threads, and none too large.
        const int64_t most = with.task_rows ? with.task_rows(call.shape) : MOST_ROWS;
        const int64_t wanted = std::max((team.threads + call.directions - 1) / call.directions,
                                        (call.batch + most - 1) / most);
        blocks = std::min(wanted, call.batch);
    }

    // Call compute(task, scratch) for all tasks; floats(rows) is the size of the scratch. Return false
    // if there is no memory for it.
    template <class Size, class Compute>
    bool run(Size floats, Compute compute) {
        struct Context {
            Tasks& tasks;
            Size& floats;
            Compute& compute;
            std::atomic<bool> failed{false};
        } context{*this, floats, compute};
        const pool::Function task = [](void* data, int64_t index) {
            Context& c = *static_cast<Context*>(data);
            const Tasks& all = c.tasks;
            const int64_t block = index / all.directions;
            const int64_t rows = static_cast<int64_t>(all.order.size());
            const K2tTask task{index % all.directions, all.order.data(), block, all.blocks,
                               (rows - block + all.blocks - 1) / all.blocks, c.tasks.visits.data()};
            float* scratch = memory.at_least(c.floats(task.count));
            if (scratch)
                c.compute(task, scratch);
            else
                c.failed = true;
        };
        team.run(blocks * directions, task, &context);
        return !context.failed;
    }
};

// How the units of a single row are split between threads.
struct UnitSplit {
    int64_t parts;       // threads per direction
    bool concurrent;  // whether both directions run at the same time
};

UnitSplit choose_split(const K2tCall& call, const K2tKernel& with, const Team& team) {
    const UnitSplit unsplit{1, true};
    const bool drops = has_masks(call.input_masks) || has_masks(call.state_masks);
    if (!with.split_run || call.batch != 1 || call.kept[0] || drops || team.threads < 2) return unsplit;
    const int64_t directions = call.directions;
    const double weights = static_cast<double>(gate_count(call.shape.kind)) *
                           static_cast<double>(call.shape.units * call.shape.units);
    // Two threads from SPLIT_WEIGHTS on; each more needs as many weights again, since all wait for the
    // slowest after every step.
    const int64_t most =
        weights < SPLIT_WEIGHTS ? 1 : std::max(int64_t{2}, static_cast<int64_t>(weights / SPLIT_WEIGHTS));
    if (team.threads >= 2 * directions && most >= 2)
        return {std::min(team.threads / directions, most), true};
    if (weights >= CACHE_WEIGHTS) return {std::min(team.threads, most), false};
    return unsplit;
}

constexpr int64_t SOURCES = 4;

uint64_t random_number() try {
    std::random_device device;
    return static_cast<uint64_t>(device()) << 32 | device();
} catch (const std::exception&) {  // no source of randomness on this system
    return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

// Fingerprint the four weights of a direction. The start differs between processes; a forked child keeps its
// parent's, with the parent's packed weights.
uint64_t fingerprint(const K2tKernel& with, const K2tArray* sources) {
    static const uint64_t start = random_number();
    return with.fingerprint(sources, SOURCES, start);
}

// Whether the weights of a direction are others than those that were packed.
bool is_stale(const K2tKernel& with, const K2tCall& call, int64_t direction) {
    const K2tArray* const sources = call.sources[direction];
    return sources && fingerprint(with, sources) != call.fingerprints[direction];
}

// Run a single row, split by units. Returns a K2tResult.
int64_t run_split(const K2tCall& call, const K2tKernel& with, const Team& team,
                  const UnitSplit& split) {
    const int64_t directions = call.directions, parts = split.parts;
    const int64_t size = (with.split_size(call.shape) + 15) / 16 * 16;
    float* shared = memory.at_least(size * directions);
    if (!shared) return K2T_NO_MEMORY;
    std::vector<uint8_t> visits(static_cast<size_t>(call.time * parts));
    std::deque<WorkPhases> phases;
    for (int64_t d = 0; d < directions; ++d)
        phases.emplace_back(1 + with.split_start(call, d, shared + d * size), parts);
    bool stale[2] = {};
    auto one = [&](int64_t d, int64_t part) {
        phases[static_cast<size_t>(d)].work(part, [&](int64_t phase, int64_t which) {
            if (phase > 0)
                with.split_run(call, {d, phase - 1, which, parts, visits.data()}, shared + d * size);
            else if (which == 0)
                stale[d] = is_stale(with, call, d);
        });
    };
    auto all = [&](int64_t index) {
        if (split.concurrent) return one(index % directions, index / directions);
        for (int64_t d = 0; d < directions; ++d) one(d, index);
    };
    const int64_t threads = split.concurrent ? parts * directions : parts;
    team.run(threads, [](void* context, int64_t index) { (*static_cast<decltype(all)*>(context))(index); },
             &all);
    return stale[0] || stale[1] ? K2T_STALE : K2T_DONE;
}

// Whether a nonlinearity falls nowhere, so that its derivative is a function of the value that a run keeps.
bool has_slope(int64_t kind, double parameter) {
    const bool falls_below = (kind == K2T_LEAKY_RELU || kind == K2T_ELU) && parameter < 0;
    return kind != K2T_SILU && kind != K2T_HARD_SILU && !falls_below;
}

bool lengths_fit(const K2tCall& call) {
    if (!call.lengths) return true;
    return std::all_of(call.lengths, call.lengths + call.batch,
                       [&](int64_t length) { return length >= 0 && length <= call.time; });
}

}  // namespace

extern "C" {

uint64_t k2t_source_hash() { return K2T_SOURCE_HASH; }

int64_t k2t_instruction_sets() { return instruction_sets(); }

int64_t k2t_packed_size(int64_t isa, const K2tShape* shape) {
    const K2tKernel* const with = k2t_kernel(isa);
    return knows_shape(with, *shape) ? with->packed_size(*shape) : -1;
}

int64_t k2t_pack(int64_t isa, const K2tShape* shape, const float* weight_ih, const float* weight_hh,
                 const float* bias_ih, const float* bias_hh, float* packed) {
    const K2tKernel* const with = k2t_kernel(isa);
    if (!knows_shape(with, *shape)) return K2T_UNKNOWN_CODE;
    with->pack(*shape, weight_ih, weight_hh, bias_ih, bias_hh, packed);
    return K2T_DONE;
}

int64_t k2t_fingerprint(int64_t isa, const K2tArray* sources, uint64_t* found) {
    const K2tKernel* const with = k2t_kernel(isa);
    if (!with) return K2T_UNKNOWN_CODE;
    *found = fingerprint(*with, sources);
    return K2T_DONE;
}

void k2t_use_threads_of(void* gomp_parallel) {
    pool::use(reinterpret_cast<pool::Region>(gomp_parallel));
}

int64_t k2t_run(int64_t isa, const K2tRun* run) try {
    const K2tCall call{*run->weights, *run};
    const K2tKernel* const known = k2t_kernel(isa);
    if (!knows_layer(known, call) || !k2t_knows(call.merge, K2T_MERGES)) return K2T_UNKNOWN_CODE;
    if (!lengths_fit(call)) return K2T_WRONG_LENGTH;
    const K2tKernel& with = *known;
    const Team team = team_for(call);
    const UnitSplit split = choose_split(call, with, team);
    if (split.parts > 1) return run_split(call, with, team, split);
    Tasks tasks(call, with, team);
    if (call.merge != K2T_APART && call.directions == 2)
        tasks.visits.resize(static_cast<size_t>(call.batch * call.time));
    bool stale[2] = {};
    const bool done = tasks.run(
        [&](int64_t rows) { return with.scratch_size(call, rows); },
        [&](const K2tTask& task, float* scratch) {
            // One task of each direction, so that two threads share this, too.
            if (task.first == 0) stale[task.direction] = is_stale(with, call, task.direction);
            with.run(call, task, scratch);
        });
    return !done ? K2T_NO_MEMORY : stale[0] || stale[1] ? K2T_STALE : K2T_DONE;
} catch (const std::bad_alloc&) {
    return K2T_NO_MEMORY;
}

int64_t k2t_width(int64_t isa, int64_t units) {
    const K2tKernel* const with = k2t_kernel(isa);
    return with ? (units + with->lanes - 1) / with->lanes * with->lanes : -1;
}

int64_t k2t_kept_parts(int64_t kind) { return k2t_knows(kind, K2T_KINDS) ? k2t_float32_plain.kept_parts(kind) : -1; }

int64_t k2t_gradient_packed_size(int64_t isa, const K2tShape* shape) {
    const K2tKernel* const with = k2t_kernel(isa);
    return knows_shape(with, *shape) && with->gradient_run ? with->gradient_packed_size(*shape) : -1;
}

int64_t k2t_gradient_pack(int64_t isa, const K2tShape* shape, const float* weight_ih, const float* weight_hh,
                          float* packed) {
    const K2tKernel* const with = k2t_kernel(isa);
    if (!knows_shape(with, *shape) || !with->gradient_run) return K2T_UNKNOWN_CODE;
    with->gradient_pack(*shape, weight_ih, weight_hh, packed);
    return K2T_DONE;
}

int64_t k2t_gradient(int64_t isa, const K2tRun* run, const K2tGradient* gradient) try {
    const K2tWayBack call{{*run->weights, *run}, *gradient};
    const K2tKernel* const known = k2t_kernel(isa);
    if (!knows_layer(known, call) || !known->gradient_run ||
        !has_slope(call.activation, call.activation_parameter) ||
        !has_slope(call.recurrent_activation, call.recurrent_activation_parameter))
        return K2T_UNKNOWN_CODE;
    if (!lengths_fit(call)) return K2T_WRONG_LENGTH;
    const K2tKernel& with = *known;
    Tasks tasks(call, with, team_for(call));
    if (call.d_x && call.directions == 2)
        tasks.visits.resize(static_cast<size_t>(call.batch * call.time));
    // Of each task, so that they are added up in the same order, whichever thread is the first.
    thread_local Memory all_sums;
    const int64_t size = with.sums_size(call.shape), directions = call.directions;
    float* const sums = all_sums.at_least(size * tasks.blocks * directions);
    if (!sums) return K2T_NO_MEMORY;
    auto sums_of = [&](int64_t direction) { return sums + direction * tasks.blocks * size; };
    const bool done = tasks.run(
        [&](int64_t rows) { return with.gradient_scratch_size(call, rows); },
        [&](const K2tTask& task, float* scratch) {
            with.gradient_run(call, task, sums_of(task.direction) + task.first * size, scratch);
        });
    if (!done) return K2T_NO_MEMORY;
    auto write = [&](int64_t direction) {
        with.write_sums(call, direction, sums_of(direction), tasks.blocks);
    };
    pool::run(tasks.team.threads, directions,
              [](void* context, int64_t index) { (*static_cast<decltype(write)*>(context))(index); }, &write);
    return K2T_DONE;
} catch (const std::bad_alloc&) {
    return K2T_NO_MEMORY;
}
}
