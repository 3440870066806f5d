// One direction of a layer over some rows of the batch: the task of one thread. Inside an
// isa_*.cpp's namespace.
//
// Steps are computed in blocks: the product of the input for all steps of a block at once (so that its
// weights are fetched once per block), then step by step the recurrent product and the equations of the
// cell, panel by panel. No task waits for the other direction or for other rows.

// ---- packed weights: input panels, recurrent panels, bias_ih, bias_hh -----------------------------

struct Packed {
    const float* input;        // [panel][F][G][lane]
    const float* recurrent;    // [panel][H][G][lane]; GRU before: r and z, then n by itself
    const float* bias_ih;      // [panel][G][lane]
    const float* bias_hh;

    Packed(const K2tShape& shape, const float* from) {
        const long width = gate_count(shape.kind) * whole(shape.units);
        input = from;
        recurrent = input + width * shape.features;
        bias_ih = recurrent + width * shape.units;
        bias_hh = bias_ih + width;
    }
};

static long packed_size(const K2tShape& shape) {
    return gate_count(shape.kind) * whole(shape.units) * (shape.features + shape.units + 2);
}

static float* pack_bias(const float* bias, long first, long v, long units, float* to) {
    if (bias) return pack_panels(bias, first, v, units, 1, to);
    for (long i = 0; i < v * whole(units); ++i) *to++ = 0;
    return to;
}

static void pack(const K2tShape& shape, const float* weight_ih, const float* weight_hh,
                 const float* bias_ih, const float* bias_hh, float* to) {
    const long gates = gate_count(shape.kind), units = shape.units;
    to = pack_panels(weight_ih, 0, gates, units, shape.features, to);
    if (shape.kind == K2T_GRU_BEFORE) {
        to = pack_panels(weight_hh, 0, 2, units, units, to);
        to = pack_panels(weight_hh, 2, 1, units, units, to);
        to = pack_bias(bias_ih, 0, 3, units, to);
        to = pack_bias(bias_hh, 0, 2, units, to);
        pack_bias(bias_hh, 2, 1, units, to);
    } else {
        to = pack_panels(weight_hh, 0, gates, units, units, to);
        to = pack_bias(bias_ih, 0, gates, units, to);
        pack_bias(bias_hh, 0, gates, units, to);
    }
}

// ---- a cell's two nonlinearities ------------------------------------------------------------------

struct Standard {  // of most models: no switch in the inner loop
    template <class Call>
    explicit Standard(const Call&) {}
    Vec gate(Vec x) const { return sigmoid(x); }
    Vec act(Vec x) const { return hyperbolic_tangent(x); }
};

struct Configured {
    long gate_kind, act_kind;
    float gate_parameter, act_parameter;
    template <class Call>
    explicit Configured(const Call& call)
        : gate_kind(call.recurrent_activation),
          act_kind(call.activation),
          gate_parameter(static_cast<float>(call.recurrent_activation_parameter)),
          act_parameter(static_cast<float>(call.activation_parameter)) {}
    Vec gate(Vec x) const { return activate(gate_kind, gate_parameter, x); }
    Vec act(Vec x) const { return activate(act_kind, act_parameter, x); }
};

template <class Call>
static bool is_standard(const Call& call) {
    return call.activation == K2T_TANH &&
           (call.recurrent_activation == K2T_SIGMOID || call.shape.kind == K2T_SIMPLE);
}

// ---- one step -------------------------------------------------------------------------------------

// Buffers of a task; every row is padded to whole panels.
struct Scratch {
    float* x;       // rows of a block of steps, (rows, F)
    float* inputs;  // their product with the input weights: (rows, [panel][G][lane])
    float* sums;    // the recurrent product of one panel: (rows, [G][lane])
    float* h;       // state before the step: (rows, H)
    float* h_next;  // and after it
    float* c;       // LSTM: cell state; GRU before: z
    float* reset;   // GRU before: r h
    bool keeping;   // whether to keep the values that the gradient needs
    float* kept[MOST_ROWS];  // their place, for each row
    long first_panel;        // the panels of this task
    long panels;
    bool turned;             // whether this step reads the panels in reverse order

    // First unit of the n-th panel to read. Every other step reads in reverse order, and so begins with
    // the panels that are still in the first-level cache.
    long unit(long n) const { return (first_panel + (turned ? panels - 1 - n : n)) * LANES; }
};

// ---- values kept for the gradient -------------------------------------------------------------------

// LSTM: i, f, g, o, c. GRU after: r, z, n, n's recurrent sum. GRU before: r, z, n. Simple: the new h.
// Then, for all cells, h before the step. Each has `whole(units)` floats.
static long kept_parts(long kind) {
    return kind == K2T_LSTM ? 6 : kind == K2T_GRU_AFTER ? 5 : kind == K2T_GRU_BEFORE ? 4 : 2;
}

template <class... Values>
static void keep(float* to, long width, Values... values) {
    ((store(to, values), to += width), ...);
}

// Compute the recurrent product of each panel, then call cell(row, unit, at, in, sum) for its units in
// each row: `at` is their offset in (rows, H), `in` their product with the input (x_t W + b_ih, with IN
// gates), `sum` the recurrent product (G gates).
template <long G, long IN, class Cell>
static void for_units(long rows, long units, const Scratch& s, const float* state,
                      const float* recurrent, const float* bias, const float* inputs,
                      long inputs_stride, Cell cell) {
    const long width = whole(units);
    for (long n = 0; n < s.panels; ++n) {
        const long unit = s.unit(n);
        product<G>(rows, units, state, width, recurrent + unit * units * G, bias + unit * G, 0, s.sums,
                   G * LANES);
        for (long r = 0; r < rows; ++r)
            cell(r, unit, r * width + unit, inputs + r * inputs_stride + unit * IN,
                 s.sums + r * G * LANES);
    }
}

template <class Functions>
static void lstm_step(const Functions& f, const Packed& w, long rows, long units, Scratch& s,
                      const float* inputs, long inputs_stride) {
    const long width = whole(units);
    for_units<4, 4>(
        rows, units, s, s.h, w.recurrent, w.bias_hh, inputs, inputs_stride,
        [&](long r, long unit, long at, const float* in, const float* sum) {
            const Vec i = f.gate(load(in) + load(sum));
            const Vec forget = f.gate(load(in + LANES) + load(sum + LANES));
            const Vec g = f.act(load(in + 2 * LANES) + load(sum + 2 * LANES));
            const Vec o = f.gate(load(in + 3 * LANES) + load(sum + 3 * LANES));
            const Vec next = forget * load(s.c + at) + i * g;
            store(s.c + at, next);
            store(s.h_next + at, o * f.act(next));
            if (s.keeping) keep(s.kept[r] + unit, width, i, forget, g, o, next);
        });
}

template <class Functions>
static void gru_after_step(const Functions& f, const Packed& w, long rows, long units, Scratch& s,
                           const float* inputs, long inputs_stride) {
    const long width = whole(units);
    for_units<3, 3>(
        rows, units, s, s.h, w.recurrent, w.bias_hh, inputs, inputs_stride,
        [&](long r, long unit, long at, const float* in, const float* sum) {
            const Vec reset = f.gate(load(in) + load(sum));
            const Vec z = f.gate(load(in + LANES) + load(sum + LANES));
            const Vec recurrent = load(sum + 2 * LANES);
            const Vec n = f.act(load(in + 2 * LANES) + reset * recurrent);
            store(s.h_next + at, z * load(s.h + at) + (1.0f - z) * n);
            if (s.keeping) keep(s.kept[r] + unit, width, reset, z, n, recurrent);
        });
}

template <class Functions>
static void gru_before_gates(const Functions& f, const Packed& w, long rows, long units, Scratch& s,
                             const float* inputs, long inputs_stride) {
    const long width = whole(units);
    float* z = s.c;
    for_units<2, 3>(
        rows, units, s, s.h, w.recurrent, w.bias_hh, inputs, inputs_stride,
        [&](long r, long unit, long at, const float* in, const float* sum) {
            const Vec reset = f.gate(load(in) + load(sum));
            store(s.reset + at, reset * load(s.h + at));
            store(z + at, f.gate(load(in + LANES) + load(sum + LANES)));
            if (s.keeping) keep(s.kept[r] + unit, width, reset, load(z + at));
        });
}

template <class Functions>
static void gru_before_new(const Functions& f, const Packed& w, long rows, long units, Scratch& s,
                           const float* inputs, long inputs_stride) {
    const long width = whole(units);
    const float* z = s.c;
    for_units<1, 3>(
        rows, units, s, s.reset, w.recurrent + width * units * 2, w.bias_hh + width * 2, inputs,
        inputs_stride, [&](long r, long unit, long at, const float* in, const float* sum) {
            const Vec n = f.act(load(in + 2 * LANES) + load(sum)), old = load(z + at);
            store(s.h_next + at, old * load(s.h + at) + (1.0f - old) * n);
            if (s.keeping) keep(s.kept[r] + 2 * width + unit, width, n);
        });
}

template <class Functions>
static void simple_step(const Functions& f, const Packed& w, long rows, long units, Scratch& s,
                        const float* inputs, long inputs_stride) {
    const long width = whole(units);
    for_units<1, 1>(
        rows, units, s, s.h, w.recurrent, w.bias_hh, inputs, inputs_stride,
        [&](long r, long unit, long at, const float* in, const float* sum) {
            const Vec next = f.act(load(in) + load(sum));
            store(s.h_next + at, next);
            if (s.keeping) keep(s.kept[r] + unit, width, next);
        });
}

template <class Functions>
static void one_step(const Functions& f, const Packed& w, long rows, long units, Scratch& s,
                     const float* inputs, long stride, long kind) {
    switch (kind) {
        case K2T_LSTM: return lstm_step(f, w, rows, units, s, inputs, stride);
        case K2T_GRU_AFTER: return gru_after_step(f, w, rows, units, s, inputs, stride);
        case K2T_GRU_BEFORE:
            gru_before_gates(f, w, rows, units, s, inputs, stride);
            return gru_before_new(f, w, rows, units, s, inputs, stride);
        default: simple_step(f, w, rows, units, s, inputs, stride);
    }
}

// ---- the whole sequence ---------------------------------------------------------------------------

// Rows (of steps and batch) per input product: few enough to stay in cache, many enough to reuse each
// fetched weight. Larger blocks pay off when the input weights leave the cache between two blocks.
constexpr long BLOCK_ROWS = 96, MOST_BLOCK_ROWS = 256, MANY_WEIGHTS = 1 << 18;

static long block_steps(const K2tShape& shape, long rows) {
    const bool many = gate_count(shape.kind) * shape.units * shape.features >= MANY_WEIGHTS;
    const long most = many ? MOST_BLOCK_ROWS : BLOCK_ROWS;
    return rows >= most ? 1 : most / rows;
}

// Distance between rows, padded so that they do not all map to the same cache sets.
static long inputs_stride(const K2tShape& shape) {
    return gate_count(shape.kind) * whole(shape.units) + LANES;
}

static long scratch_size(const K2tShape& shape, long rows) {
    const long block = rows * block_steps(shape, rows), width = whole(shape.units);
    return block * whole(shape.features) + block * inputs_stride(shape) + rows * 4 * LANES +
           rows * width * 4;
}

static void copy(const float* from, long count, float* to) {
    long i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, from ? load(from + i) : Vec{});
    for (; i < count; ++i) to[i] = from ? from[i] : 0;
}

template <class Value>
static Value merged(long merge, Value a, Value b) {
    return merge == K2T_MUL ? a * b : merge == K2T_SUM ? a + b : (a + b) * 0.5f;
}

static void merge_into(float* to, long merge, const float* from, long count) {
    long i = 0;
    for (; i + LANES <= count; i += LANES)
        store(to + i, merged(merge, load(to + i), load(from + i)));
    for (; i < count; ++i) to[i] = merged(merge, to[i], from[i]);
}

enum Visit : uint8_t { NOT_VISITED, WRITING, WRITTEN };

static bool merges(const K2tCall& call) { return call.merge != K2T_APART && call.directions == 2; }

// The place of a direction's output of step t of a row.
static float* output(const K2tCall& call, long direction, long row, long t) {
    const bool merging = merges(call);
    const long units = call.shape.units, width = merging ? units : call.directions * units;
    return call.out + (row * call.time + t) * width + (merging ? 0 : direction * units);
}

// The place of a direction's h (0) or c (1) of a row in (D * S, B, H); null if `all` is.
template <class Call, class Float>
static Float* state_in(const Call& call, Float* all, long direction, long which, long row) {
    const long states = call.shape.kind == K2T_LSTM ? 2 : 1;
    if (!all) return nullptr;
    return all + ((direction * states + which) * call.batch + row) * call.shape.units;
}

// Write the output of one direction for step t of a row: `count` units from `first` on, which are part
// `part` of `parts`. If both directions are merged into one place, the first to arrive writes and the
// second merges: they meet in the middle, and wait only while both are at the same step.
static void write_output(const K2tCall& call, long direction, long row, long t, long part, long parts,
                         long first, long count, const float* h, uint8_t* visits) {
    if (!call.out) return;
    float* to = output(call, direction, row, t) + first;
    if (!merges(call)) return copy(h, count, to);
    uint8_t* visit = visits + (row * call.time + t) * parts + part;
    uint8_t before = NOT_VISITED;
    if (__atomic_compare_exchange_n(visit, &before, WRITING, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_ACQUIRE)) {
        copy(h, count, to);
        __atomic_store_n(visit, WRITTEN, __ATOMIC_RELEASE);
        return;
    }
    constexpr long PATIENCE = 2000;
    for (long turn = 0; before != WRITTEN; ++turn) {
        pool::wait_turn(turn, PATIENCE);
        before = __atomic_load_n(visit, __ATOMIC_ACQUIRE);
    }
    merge_into(to, call.merge, h, count);
}

// Compute rows of x times the input weights of some panels, plus bias_ih.
static void input_product(const K2tShape& shape, const Packed& w, long rows, const float* x,
                          long x_stride, long first_panel, long panels, float* out) {
    const long stride = inputs_stride(shape), gates = gate_count(shape.kind), in = shape.features;
    for (long unit = first_panel * LANES; unit < (first_panel + panels) * LANES; unit += LANES) {
        const float* panel = w.input + unit * gates * in;
        const float* bias = w.bias_ih + unit * gates;
        float* to = out + unit * gates;
        switch (gates) {
            case 4: product<4>(rows, in, x, x_stride, panel, bias, 0, to, stride); break;
            case 3: product<3>(rows, in, x, x_stride, panel, bias, 0, to, stride); break;
            default: product<1>(rows, in, x, x_stride, panel, bias, 0, to, stride);
        }
    }
}

template <class Functions>
static void run_with(const K2tCall& call, const K2tTask& task, float* memory) {
    const K2tShape& shape = call.shape;
    const long kind = shape.kind, units = shape.units, width = whole(units), rows = task.count;
    const long features = shape.features, stride = inputs_stride(shape);
    const long d = task.direction;
    const bool backward = d == 1;
    const bool merging = merges(call);
    const Functions functions(call);
    const Packed w(shape, call.packed[d]);

    Scratch s;
    const long steps_at_once = block_steps(shape, rows), block = rows * steps_at_once;
    s.x = memory;
    s.inputs = s.x + block * whole(features);
    s.sums = s.inputs + block * stride;
    s.h = s.sums + rows * 4 * LANES;
    s.h_next = s.h + rows * width;
    s.c = s.h_next + rows * width;
    s.reset = s.c + rows * width;
    s.keeping = call.kept[d] != nullptr;
    s.first_panel = 0;
    s.panels = width / LANES;
    s.turned = false;
    const long parts = kept_parts(kind);

    // Rows are sorted by falling length, so the rows that still run are the first ones.
    auto length = [&](long r) { return call.lengths ? long(call.lengths[task.row(r)]) : call.time; };
    auto finish = [&](long r, const float* h) {
        if (!call.final) return;
        copy(h + r * width, units, state_in(call, call.final, d, 0, task.row(r)));
        if (kind == K2T_LSTM)
            copy(s.c + r * width, units, state_in(call, call.final, d, 1, task.row(r)));
    };
    for (long r = 0; r < rows; ++r) {
        const long b = task.row(r);
        copy(nullptr, width, s.h + r * width);
        copy(nullptr, width, s.h_next + r * width);
        copy(nullptr, width, s.c + r * width);
        if (call.h_0[d]) copy(call.h_0[d] + b * units, units, s.h + r * width);
        if (kind == K2T_LSTM && call.c_0[d]) copy(call.c_0[d] + b * units, units, s.c + r * width);
        if (length(r) == 0) finish(r, s.h);
        // Zeros past the end. Both directions end at the same step, and zeros merge to zeros.
        if (call.out && (d == 0 || !merging))
            for (long t = length(r); t < call.time; ++t)
                copy(nullptr, units, output(call, d, b, t));
    }

    long running = rows;
    for (long first = 0;; first += steps_at_once) {
        while (running > 0 && length(running - 1) <= first) --running;
        if (running == 0) return;
        // Gather the block's rows, step by step, and take their product with the input weights.
        long gathered = 0, left = running, active[MOST_BLOCK_ROWS];
        for (long step = first; step < first + steps_at_once; ++step) {
            while (left > 0 && length(left - 1) <= step) --left;
            active[step - first] = left;
            for (long r = 0; r < left; ++r, ++gathered) {
                const long t = backward ? length(r) - 1 - step : step;
                copy(call.x + task.row(r) * call.x_batch_stride + t * call.x_time_stride, features,
                     s.x + gathered * whole(features));
            }
        }
        input_product(shape, w, gathered, s.x, whole(features), 0, s.panels, s.inputs);
        const float* inputs = s.inputs;
        for (long step = first; step < first + steps_at_once && active[step - first]; ++step) {
            const long n = active[step - first];
            if (s.keeping)
                for (long r = 0; r < n; ++r) {
                    const long t = backward ? length(r) - 1 - step : step;
                    s.kept[r] = call.kept[d] + (task.row(r) * call.time + t) * parts * width;
                    copy(s.h + r * width, width, s.kept[r] + (parts - 1) * width);
                }
            one_step(functions, w, n, units, s, inputs, stride, kind);
            inputs += n * stride;
            for (long r = 0; r < n; ++r) {
                const long t = backward ? length(r) - 1 - step : step;
                write_output(call, d, task.row(r), t, 0, 1, 0, units, s.h_next + r * width, task.visits);
                if (step == length(r) - 1) finish(r, s.h_next);
            }
            float* before = s.h;
            s.h = s.h_next;
            s.h_next = before;
            s.turned = !s.turned;
        }
    }
}

static void run(const K2tCall& call, const K2tTask& task, float* memory) {
    if (is_standard(call))
        run_with<Standard>(call, task, memory);
    else
        run_with<Configured>(call, task, memory);
}
