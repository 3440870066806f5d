// One step of each cell for some rows, panel by panel. Inside an instruction set's namespace. Weights: Packed, or
// ReducedWeights, with for_units of their matrices.

// ---- a cell's two nonlinearities ------------------------------------------------------------------

struct Standard {  // of most models: no switch in the inner loop
    explicit Standard(const K2tCall&) {}
    Vec gate(Vec x) const { return sigmoid(x); }
    Vec act(Vec x) const { return hyperbolic_tangent(x); }
};

struct Configured {
    int64_t gate_kind, act_kind;
    float gate_parameter, act_parameter;
    explicit Configured(const K2tCall& call)
        : gate_kind(call.recurrent_activation),
          act_kind(call.activation),
          gate_parameter(static_cast<float>(call.recurrent_activation_parameter)),
          act_parameter(static_cast<float>(call.activation_parameter)) {}
    Vec gate(Vec x) const { return activate(gate_kind, gate_parameter, x); }
    Vec act(Vec x) const { return activate(act_kind, act_parameter, x); }
};

// Call body(functions) with the nonlinearities of a call.
template <class Usual = Standard, class Other = Configured, class Body>
static void with_functions(const K2tCall& call, Body body) {
    if (call.activation == K2T_TANH &&
        (call.recurrent_activation == K2T_SIGMOID || call.shape.kind == K2T_SIMPLE))
        body(Usual(call));
    else
        body(Other(call));
}

// ---- one step -------------------------------------------------------------------------------------

static void copy(const float* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, from ? load(from + i) : Vec{});
    for (; i < count; ++i) to[i] = from ? from[i] : 0;
}

static void copy_scaled(const float* from, const float* factors, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(from + i) * load(factors + i));
    for (; i < count; ++i) to[i] = from[i] * factors[i];
}

// Masks of dropout and what they leave of a vector: M copies of rows, one for all gates or one for each.
struct Dropped {
    float* masks;    // null: nothing is dropped
    float* values;
    int64_t distance;   // between copies, for gates that have one each; else 0
    int64_t copies;

    // Drop rows of `from`, each `width` wide, as the copies are; return what the gates read instead.
    Operand drop(int64_t rows, int64_t width, const float* from) const {
        if (!masks) return {from, width, 0};
        for (int64_t copy = 0, at = 0; copy < copies; ++copy, at = copy * distance)
            for (int64_t i = 0; i < rows * width; i += LANES)
                store(values + at + i, load(from + i) * load(masks + at + i));
        return {values, width, distance};
    }

    // The mask of one gate, null for none.
    const float* of(int64_t gate) const { return masks ? masks + gate * distance : nullptr; }
};

static int64_t mask_copies(const K2tShape& shape) { return shape.apart ? gate_count(shape.kind) : 1; }

static int64_t masks_size(const K2tShape& shape, int64_t rows) {
    return 2 * mask_copies(shape) * rows * whole(shape.units);
}

// Take the masks (M, B, H) of the state for the rows of a task, padded; none if they are null.
static Dropped take_masks(const float* masks, const K2tShape& shape, int64_t batch, const K2tTask& task,
                          float* memory) {
    const int64_t copies = mask_copies(shape), units = shape.units, width = whole(units);
    const int64_t all = task.count * width;
    if (!masks) return {nullptr, nullptr, 0, 0};
    copy(nullptr, copies * all, memory);
    for (int64_t gate = 0; gate < copies; ++gate)
        for (int64_t r = 0; r < task.count; ++r)
            copy(masks + (gate * batch + task.row(r)) * units, units, memory + gate * all + r * width);
    return {memory, memory + copies * all, copies > 1 ? all : 0, copies};
}

// Buffers of a task; every row is padded to whole panels.
struct Scratch {
    float* x;       // rows of a block of steps, (rows, F)
    float* sums;    // the recurrent product of one panel: (rows, [G][lane]); of a single row, of all
    float* h;       // state before the step: (rows, H)
    float* h_next;  // and after it
    float* c;       // LSTM: cell state; GRU: z
    float* reset;   // GRU before: r h
    Dropped state;  // of the state, (M, rows, H)
    bool apart;     // whether each gate reads a state of its own
    bool keeping;   // whether to keep the values that the gradient needs
    float* kept[MOST_ROWS];  // their place, for each row
    int64_t first_panel;        // the panels of this task
    int64_t panels;
    bool turned;             // whether this step reads the panels in reverse order

    // First unit of the n-th panel to read. Every other step reads in reverse order, and so begins with
    // the panels that are still in the first-level cache.
    int64_t unit(int64_t n) const { return (first_panel + (turned ? panels - 1 - n : n)) * LANES; }
};

// The product of rows of x with the input weights, plus b_ih: G vectors for each row and panel. Of many
// sequences [panel][row][G][lane]: a step reads one piece of memory per panel. Of a single one, whose
// steps are the rows, [row][panel][G][lane]. Padded so that they do not all map to the same cache sets.
struct Inputs {
    float* data;
    int64_t row, panel;  // distances

    Inputs(const K2tShape& shape, int64_t sequences, int64_t rows, float* data) : data(data) {
        const int64_t vectors = gate_count(shape.kind) * LANES;
        row = sequences > 1 ? vectors : gate_count(shape.kind) * whole(shape.units) + LANES;
        panel = sequences > 1 ? (rows + 1) * vectors : vectors;
    }
    static int64_t size(const K2tShape& shape, int64_t rows) {
        return (rows + 1) * (gate_count(shape.kind) * whole(shape.units) + LANES);
    }
    float* of(int64_t unit) const { return data + unit / LANES * panel; }
};

// ---- values kept for the gradient -------------------------------------------------------------------

// LSTM: i, f, g, o, c. GRU after: r, z, n, n's recurrent sum. GRU before: r, z, n, and r h as n's product
// read it. Simple: the new h. Then, for all cells, h before the step. Each has `whole(units)` floats.
static int64_t kept_parts(int64_t kind) {
    switch (static_cast<K2tKind>(kind)) {
        case K2T_LSTM: return 6;
        case K2T_GRU_AFTER:
        case K2T_GRU_BEFORE: return 5;
        case K2T_SIMPLE: return 2;
    }
    __builtin_trap();
}

template <class... Values>
static void keep(float* to, int64_t width, Values... values) {
    ((store(to, values), to += width), ...);
}

static int64_t sums_size(int64_t rows, int64_t units) {
    return 4 * (rows * LANES < whole(units) ? whole(units) : rows * LANES);
}

// Compute the recurrent product of each panel, then call cell(row, unit, at, in, sum) for its units in
// each row: `at` is their offset in (rows, H), `in` their product with the input, `sum` the recurrent
// product (G gates). Then finish(row, unit, at). Each is done for all rows of a panel, of a single row for
// all panels: what follows from a result would have to wait for it, but not for those of the others.
template <int64_t G, class Cell, class Finish>
static void for_units(int64_t rows, int64_t units, const Scratch& s, const Operand& state,
                      const Recurrent& matrix, const Inputs& inputs, Cell cell, Finish finish) {
    const int64_t width = whole(units), first = s.first_panel * LANES, end = first + s.panels * LANES;
    const bool single = rows == 1;
    for (int64_t n = 0; n < s.panels; ++n) {
        const int64_t unit = s.unit(n);
        float* const sums = s.sums + (single ? (unit - first) * G : 0);
        product_of_gates<G>(rows, units, state, s.apart, matrix.panels + unit * units * G,
                            matrix.bias + unit * G, sums, G * LANES);
        if (single) continue;
        const float* in = inputs.of(unit);
        for (int64_t r = 0; r < rows; ++r, in += inputs.row)
            cell(r, unit, r * width + unit, in, sums + r * G * LANES);
        for (int64_t r = 0; r < rows; ++r) finish(r, unit, r * width + unit);
    }
    for (int64_t unit = first; unit < end && single; unit += LANES)
        cell(0, unit, unit, inputs.of(unit), s.sums + (unit - first) * G);
    for (int64_t unit = first; unit < end && single; unit += LANES) finish(0, unit, unit);
}

static void nothing_more(int64_t, int64_t, int64_t) {}

template <class Functions, class Weights>
static void lstm_step(const Functions& f, const Weights& w, int64_t rows, int64_t units, Scratch& s,
                      const Inputs& inputs) {
    const int64_t width = whole(units);
    for_units<4>(
        rows, units, s, s.state.drop(rows, width, s.h), w.of_state(), inputs,
        [&](int64_t r, int64_t unit, int64_t at, const float* in, const float* sum) {
            const Vec i = f.gate(load(in) + load(sum)), forget = f.gate(load(in + LANES) + load(sum + LANES));
            const Vec g = f.act(load(in + 2 * LANES) + load(sum + 2 * LANES));
            const Vec o = f.gate(load(in + 3 * LANES) + load(sum + 3 * LANES));
            const Vec next = forget * load(s.c + at) + i * g;
            store(s.c + at, next);
            store(s.h_next + at, o);
            if (s.keeping) keep(s.kept[r] + unit, width, i, forget, g, o, next);
        },
        [&](int64_t, int64_t, int64_t at) { store(s.h_next + at, load(s.h_next + at) * f.act(load(s.c + at))); });
}

template <class Functions, class Weights>
static void gru_after_step(const Functions& f, const Weights& w, int64_t rows, int64_t units, Scratch& s,
                           const Inputs& inputs) {
    const int64_t width = whole(units);
    for_units<3>(
        rows, units, s, s.state.drop(rows, width, s.h), w.of_state(), inputs,
        [&](int64_t r, int64_t unit, int64_t at, const float* in, const float* sum) {
            const Vec reset = f.gate(load(in) + load(sum)), z = f.gate(load(in + LANES) + load(sum + LANES));
            const Vec recurrent = load(sum + 2 * LANES);
            store(s.c + at, z);
            store(s.h_next + at, load(in + 2 * LANES) + reset * recurrent);
            if (!s.keeping) return;
            float* to = s.kept[r] + unit;
            keep(to, width, reset, z);
            store(to + 3 * width, recurrent);
        },
        [&](int64_t r, int64_t unit, int64_t at) {
            const Vec n = f.act(load(s.h_next + at)), z = load(s.c + at);
            store(s.h_next + at, z * load(s.h + at) + (1.0f - z) * n);
            if (s.keeping) store(s.kept[r] + 2 * width + unit, n);
        });
}

template <class Functions, class Weights>
static void gru_before_gates(const Functions& f, const Weights& w, int64_t rows, int64_t units, Scratch& s,
                             const Inputs& inputs) {
    const int64_t width = whole(units);
    float* z = s.c;
    const float* mask = s.state.of(2);
    for_units<2>(
        rows, units, s, s.state.drop(rows, width, s.h), w.of_state(), inputs,
        [&](int64_t r, int64_t unit, int64_t at, const float* in, const float* sum) {
            const Vec reset = f.gate(load(in) + load(sum)), gate_z = f.gate(load(in + LANES) + load(sum + LANES));
            const Vec all_h = reset * load(s.h + at), read = mask ? all_h * load(mask + at) : all_h;
            store(s.reset + at, read);
            store(z + at, gate_z);
            if (!s.keeping) return;
            float* to = s.kept[r] + unit;
            keep(to, width, reset, gate_z);
            store(to + 3 * width, read);
        },
        nothing_more);
}

template <class Functions, class Weights>
static void gru_before_new(const Functions& f, const Weights& w, int64_t rows, int64_t units, Scratch& s,
                           const Inputs& inputs) {
    const int64_t width = whole(units);
    const float* z = s.c;
    for_units<1>(
        rows, units, s, {s.reset, width, 0}, w.of_reset(units), inputs,
        [&](int64_t r, int64_t unit, int64_t at, const float* in, const float* sum) {
            const Vec n = f.act(load(in + 2 * LANES) + load(sum)), old = load(z + at);
            store(s.h_next + at, old * load(s.h + at) + (1.0f - old) * n);
            if (s.keeping) store(s.kept[r] + 2 * width + unit, n);
        },
        nothing_more);
}

template <class Functions, class Weights>
static void simple_step(const Functions& f, const Weights& w, int64_t rows, int64_t units, Scratch& s,
                        const Inputs& inputs) {
    const int64_t width = whole(units);
    for_units<1>(
        rows, units, s, s.state.drop(rows, width, s.h), w.of_state(), inputs,
        [&](int64_t r, int64_t unit, int64_t at, const float* in, const float* sum) {
            const Vec next = f.act(load(in) + load(sum));
            store(s.h_next + at, next);
            if (s.keeping) store(s.kept[r] + unit, next);
        },
        nothing_more);
}

template <class Functions, class Weights>
static void one_step(const Functions& f, const Weights& w, int64_t rows, int64_t units, Scratch& s,
                     const Inputs& inputs, int64_t kind) {
    switch (static_cast<K2tKind>(kind)) {
        case K2T_LSTM: return lstm_step(f, w, rows, units, s, inputs);
        case K2T_GRU_AFTER: return gru_after_step(f, w, rows, units, s, inputs);
        case K2T_GRU_BEFORE:
            gru_before_gates(f, w, rows, units, s, inputs);
            return gru_before_new(f, w, rows, units, s, inputs);
        case K2T_SIMPLE: return simple_step(f, w, rows, units, s, inputs);
    }
}
