// One direction of a layer over some rows of the batch: the task of one thread. Inside an
// isa_*.cpp's namespace.
//
// Steps are computed in blocks: the product of the input for all steps of a block at once (so that its
// weights are fetched once per block), then step by step the recurrent product and the equations of the
// cell, panel by panel. No task waits for the other direction or for other rows.

// ---- the whole sequence ---------------------------------------------------------------------------

// Rows (of steps and batch) per input product: few enough to stay in cache, many enough to reuse each
// fetched weight. Larger blocks pay off when the input weights leave the cache between two blocks.
constexpr int64_t BLOCK_ROWS = 96, MOST_BLOCK_ROWS = 256, MANY_WEIGHTS = 1 << 18;

static int64_t block_steps(const K2tShape& shape, int64_t rows) {
    const int64_t weights = gate_count(shape.kind) * shape.units * shape.features;
    const int64_t most = weights >= MANY_WEIGHTS ? MOST_BLOCK_ROWS : BLOCK_ROWS;
    return rows >= most ? 1 : most / rows;
}

static int64_t scratch_size(const K2tCall& call, int64_t rows) {
    const K2tShape& shape = call.shape;
    const int64_t block = rows * block_steps(shape, rows), width = whole(shape.units);
    const int64_t copies = mask_copies(shape);
    const int64_t x = (has_masks(call.input_masks) ? copies : 1) * whole(shape.features);
    return block * x + Inputs::size(shape, block) + sums_size(rows, shape.units) + rows * 4 * width +
           (has_masks(call.state_masks) ? masks_size(shape, rows) : 0);
}

template <class Value>
static Value merged(int64_t merge, Value a, Value b) {
    switch (static_cast<K2tMerge>(merge)) {
        case K2T_APART: break;  // has nothing to merge
        case K2T_SUM: return a + b;
        case K2T_MUL: return a * b;
        case K2T_AVE: return (a + b) * 0.5f;
    }
    __builtin_trap();
}

static void merge_into(float* to, int64_t merge, const float* from, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        store(to + i, merged(merge, load(to + i), load(from + i)));
    for (; i < count; ++i) to[i] = merged(merge, to[i], from[i]);
}

enum Visit : uint8_t { NOT_VISITED, WRITING, WRITTEN };

static bool merges(const K2tCall& call) { return call.merge != K2T_APART && call.directions == 2; }

// The place of a direction's output of step t of a row.
static float* output(const K2tCall& call, int64_t direction, int64_t row, int64_t t) {
    const bool merging = merges(call);
    const int64_t units = call.shape.units, width = merging ? units : call.directions * units;
    return call.out + (row * call.time + t) * width + (merging ? 0 : direction * units);
}

// The place of a direction's h (0) or c (1) of a row in (D * S, B, H); null if `all` is.
template <class Float>
static Float* state_in(const K2tCall& call, Float* all, int64_t direction, int64_t which, int64_t row) {
    const int64_t states = state_count(call.shape.kind);
    if (!all) return nullptr;
    return all + ((direction * states + which) * call.batch + row) * call.shape.units;
}

// Begin to fetch some floats that are needed much later, to read or to write (1) them. Of many rows, each
// row's next step is elsewhere, and the processor does not foresee it.
template <int WRITTEN>
static void fetch_row(const float* at, int64_t count) {
    constexpr int64_t LINE = 16;
    for (int64_t i = 0; i < count; i += LINE) __builtin_prefetch(at + i, WRITTEN);
}

// Write some floats, or merge them into those of the other direction if it was there before.
static void write_or_merge(bool merging, uint8_t* visit, int64_t merge, const float* from, int64_t count,
                           float* to) {
    if (!merging) return copy(from, count, to);
    uint8_t before = NOT_VISITED;
    if (__atomic_compare_exchange_n(visit, &before, WRITING, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_ACQUIRE)) {
        copy(from, count, to);
        __atomic_store_n(visit, WRITTEN, __ATOMIC_RELEASE);
        return;
    }
    constexpr int64_t PATIENCE = 2000;
    for (int64_t turn = 0; before != WRITTEN; ++turn) {
        os::wait_turn(turn, PATIENCE);
        before = __atomic_load_n(visit, __ATOMIC_ACQUIRE);
    }
    merge_into(to, merge, from, count);
}

// Write the output of one direction for step t of a row: `count` units from `first` on, which are part
// `part` of `parts`. If both directions are merged into one place, the first to arrive writes and the
// second merges: they meet in the middle, and wait only while both are at the same step.
static void write_output(const K2tCall& call, int64_t direction, int64_t row, int64_t t, int64_t part, int64_t parts,
                         int64_t first, int64_t count, const float* h, uint8_t* visits) {
    if (!call.out) return;
    write_or_merge(merges(call), visits + (row * call.time + t) * parts + part, call.merge, h, count,
                   output(call, direction, row, t) + first);
}

// Compute rows of x times the input weights of some panels, plus bias_ih.
static void input_product(const K2tShape& shape, const Packed& w, int64_t rows, const Operand& x,
                          int64_t first_panel, int64_t panels, const Inputs& out) {
    const int64_t gates = gate_count(shape.kind), in = shape.features, stride = out.row;
    const bool apart = shape.apart;
    for (int64_t unit = first_panel * LANES; unit < (first_panel + panels) * LANES; unit += LANES) {
        const float* panel = w.input + unit * gates * in;
        const float* bias = w.bias_ih + unit * gates;
        with_count<4>(gates, [&](auto g) {
            product_of_gates<decltype(g)::value>(rows, in, x, apart, panel, bias, out.of(unit), stride);
        });
    }
}

// The rows of a task in order of falling length, so that those that still run are the first ones.
struct TaskRows {
    const K2tCall& call;
    const K2tTask& task;

    int64_t length(int64_t r) const { return call.lengths ? int64_t(call.lengths[task.row(r)]) : call.time; }

    // The step of the input that is read as the n-th.
    int64_t time(int64_t r, int64_t step) const { return task.direction == 1 ? length(r) - 1 - step : step; }

    const float* input(int64_t r, int64_t step) const {
        return call.x + task.row(r) * call.x_batch_stride + time(r, step) * call.x_time_stride;
    }

    // Where a row's values of a step are kept for the gradient.
    float* kept(int64_t r, int64_t step) const {
        return call.kept[task.direction] + (task.row(r) * call.time + time(r, step)) *
                                               kept_parts(call.shape.kind) * whole(call.shape.units);
    }

    // Hand over a row's final state.
    void finish(int64_t r, const float* h, const float* c) const {
        const int64_t units = call.shape.units, at = r * whole(units), d = task.direction;
        if (!call.final) return;
        copy(h + at, units, state_in(call, call.final, d, 0, task.row(r)));
        if (call.shape.kind == K2T_LSTM) copy(c + at, units, state_in(call, call.final, d, 1, task.row(r)));
    }

    // Set up the states, and the zeros past the end of each row.
    void begin(Scratch& s) const {
        const int64_t units = call.shape.units, width = whole(units), d = task.direction;
        copy(nullptr, task.count * width, s.h);
        copy(nullptr, task.count * width, s.h_next);
        copy(nullptr, task.count * width, s.c);
        for (int64_t r = 0; r < task.count; ++r) {
            const int64_t b = task.row(r);
            if (call.h_0[d]) copy(call.h_0[d] + b * units, units, s.h + r * width);
            if (call.shape.kind == K2T_LSTM && call.c_0[d])
                copy(call.c_0[d] + b * units, units, s.c + r * width);
            if (length(r) == 0) finish(r, s.h, s.c);
            // Both directions end at the same step, and zeros merge to zeros.
            if (call.out && (d == 0 || !merges(call)))
                for (int64_t t = length(r); t < call.time; ++t) copy(nullptr, units, output(call, d, b, t));
        }
    }

    // Hand over the outputs of the first n rows, and the states of those that end here; then the state
    // after the step is the one before the next.
    void end_step(int64_t step, int64_t n, Scratch& s) const {
        const int64_t units = call.shape.units, width = whole(units);
        for (int64_t r = 0; r < n; ++r) {
            write_output(call, task.direction, task.row(r), time(r, step), 0, 1, 0, units,
                         s.h_next + r * width, task.visits);
            if (step == length(r) - 1)
                finish(r, s.h_next, s.c);
            else if (n > 1 && call.out)
                fetch_row<1>(output(call, task.direction, task.row(r), time(r, step + 1)), units);
        }
        float* before = s.h;
        s.h = s.h_next;
        s.h_next = before;
        s.turned = !s.turned;
    }
};

template <class Functions, class Weights>
static void run_with(const Functions& functions, const Weights& w, const K2tCall& call, const K2tTask& task,
                     float* memory) {
    const K2tShape& shape = call.shape;
    const int64_t kind = shape.kind, units = shape.units, width = whole(units), rows = task.count;
    const int64_t features = shape.features, x_width = whole(features);
    const int64_t d = task.direction;

    Scratch s;
    const int64_t steps_at_once = block_steps(shape, rows), block = rows * steps_at_once;
    const float* masks = call.input_masks[d];
    const int64_t copies = masks ? mask_copies(shape) : 1;
    auto take = [&](int64_t floats) { return (memory += floats) - floats; };
    s.x = take(copies * block * x_width);
    const Inputs inputs(shape, rows, block, take(Inputs::size(shape, block)));
    s.sums = take(sums_size(rows, units));
    s.h = take(rows * width);
    s.h_next = take(rows * width);
    s.c = take(rows * width);
    s.reset = take(rows * width);
    s.state = take_masks(call.state_masks[d], shape, call.batch, task, memory);
    s.apart = shape.apart;
    s.keeping = call.kept[d] != nullptr;
    s.first_panel = 0;
    s.panels = width / LANES;
    s.turned = false;

    const TaskRows at{call, task};
    at.begin(s);
    int64_t running = rows;
    for (int64_t first = 0;; first += steps_at_once) {
        while (running > 0 && at.length(running - 1) <= first) --running;
        if (running == 0) return;
        // Gather the block's rows, step by step, and take their product with the input weights.
        int64_t gathered = 0, left = running, active[MOST_BLOCK_ROWS];
        for (int64_t step = first; step < first + steps_at_once; ++step) {
            while (left > 0 && at.length(left - 1) <= step) --left;
            active[step - first] = left;
            for (int64_t r = 0; r < left; ++r, ++gathered) {
                const float* from = at.input(r, step);
                if (rows > 1 && step + steps_at_once < at.length(r))
                    fetch_row<0>(at.input(r, step + steps_at_once), features);
                float* to = s.x + gathered * x_width;
                if (!masks) copy(from, features, to);
                for (int64_t m = 0; masks && m < copies; ++m, to += block * x_width)
                    copy_scaled(from, masks + (m * call.batch + task.row(r)) * features, features, to);
            }
        }
        const Operand x{s.x, x_width, copies > 1 ? block * x_width : 0};
        input_product(shape, w, gathered, x, 0, s.panels, inputs);
        Inputs of_step = inputs;
        for (int64_t step = first; step < first + steps_at_once && active[step - first]; ++step) {
            const int64_t n = active[step - first];
            if (s.keeping)
                for (int64_t r = 0; r < n; ++r) {
                    s.kept[r] = at.kept(r, step);
                    copy(s.h + r * width, width, s.kept[r] + (kept_parts(kind) - 1) * width);
                }
            one_step(functions, w, n, units, s, of_step, kind);
            of_step.data += n * inputs.row;
            at.end_step(step, n, s);
        }
    }
}

static void run(const K2tCall& call, const K2tTask& task, float* memory) {
    const Packed w(call.shape, call.packed[task.direction]);
    with_functions(call, [&](auto functions) { run_with(functions, w, call, task, memory); });
}
