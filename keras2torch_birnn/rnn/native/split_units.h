// One direction of a single row, split by units: every thread computes a part of them. Inside an
// isa_*.cpp's namespace.
//
// A step needs the whole state of the step before, so the threads synchronise after each. The work
// between two synchronisations is a phase: the product of the input for a block of steps, or one step
// (two phases for a GRU with reset before the product, whose n needs all of r h).

constexpr int64_t BLOCK_STEPS = BLOCK_ROWS;

// Buffers that all parts of a direction share.
struct SplitBuffers {
    Inputs inputs;  // of BLOCK_STEPS
    float* h[2];    // state before and after a step; they swap roles
    float* c;       // LSTM: cell state; GRU: z
    float* reset;   // GRU before: r h
    float* sums;    // recurrent products of all panels

    SplitBuffers(const K2tShape& shape, float* memory) : inputs(shape, 1, BLOCK_STEPS, memory) {
        const int64_t width = whole(shape.units);
        h[0] = memory + Inputs::size(shape, BLOCK_STEPS);
        h[1] = h[0] + width;
        c = h[1] + width;
        reset = c + width;
        sums = reset + width;
    }
};

static int64_t split_size(const K2tShape& shape) {
    return Inputs::size(shape, BLOCK_STEPS) + 4 * whole(shape.units) + sums_size(1, shape.units);
}

static int64_t row_length(const K2tCall& call) { return call.lengths ? call.lengths[0] : call.time; }

static int64_t phases_per_step(int64_t kind) { return kind == K2T_GRU_BEFORE ? 2 : 1; }

static int64_t phases_of_block(const K2tCall& call) {
    return 1 + BLOCK_STEPS * phases_per_step(call.shape.kind);
}

// Set up the state and the zeros past the end of the row; return the number of phases.
static int64_t split_start(const K2tCall& call, int64_t d, float* memory) {
    const K2tShape& shape = call.shape;
    const int64_t units = shape.units, width = whole(units), length = row_length(call);
    SplitBuffers s(shape, memory);
    copy(nullptr, 4 * width, s.h[0]);
    if (call.h_0[d]) copy(call.h_0[d], units, s.h[0]);
    if (shape.kind == K2T_LSTM && call.c_0[d]) copy(call.c_0[d], units, s.c);
    if (call.out && (d == 0 || !merges(call)))
        for (int64_t t = length; t < call.time; ++t) copy(nullptr, units, output(call, d, 0, t));
    if (length == 0 && call.final) {
        copy(s.h[0], units, state_in(call, call.final, d, 0, 0));
        if (shape.kind == K2T_LSTM) copy(s.c, units, state_in(call, call.final, d, 1, 0));
    }
    const int64_t last_steps = length % BLOCK_STEPS;
    return length / BLOCK_STEPS * phases_of_block(call) +
           (last_steps ? 1 + last_steps * phases_per_step(shape.kind) : 0);
}

template <class Functions>
static void split_run_with(const Functions& functions, const K2tCall& call, const K2tPart& at,
                           float* memory) {
    const K2tShape& shape = call.shape;
    const int64_t kind = shape.kind, units = shape.units, d = at.direction;
    const int64_t length = row_length(call), all_panels = whole(units) / LANES;
    const int64_t first_panel = all_panels * at.part / at.parts;
    const int64_t panels = all_panels * (at.part + 1) / at.parts - first_panel;
    const int64_t first = first_panel * LANES;
    const int64_t count = first + panels * LANES < units ? panels * LANES : units - first;
    const Packed w(shape, call.packed[d]);
    const SplitBuffers shared(shape, memory);

    const int64_t block = at.phase / phases_of_block(call), begin = block * BLOCK_STEPS;
    const int64_t phase = at.phase % phases_of_block(call) - 1;  // of the block's steps
    auto time = [&](int64_t step) { return d == 1 ? length - 1 - step : step; };
    if (phase < 0) {
        const int64_t steps = length - begin < BLOCK_STEPS ? length - begin : BLOCK_STEPS;
        const int64_t stride = call.x_time_stride;
        return input_product(shape, w, steps, {call.x + time(begin) * stride, d ? -stride : stride, 0},
                             first_panel, panels, shared.inputs);
    }
    const int64_t in_block = phase / phases_per_step(kind), step = begin + in_block;
    const bool last_phase = phase % phases_per_step(kind) == phases_per_step(kind) - 1;
    Scratch s{};
    s.sums = shared.sums + 4 * first;
    s.h = shared.h[step % 2];
    s.h_next = shared.h[1 - step % 2];
    s.c = shared.c;
    s.reset = shared.reset;
    s.first_panel = first_panel;
    s.panels = panels;
    s.turned = step % 2;
    Inputs inputs = shared.inputs;
    inputs.data += in_block * inputs.row;
    if (kind == K2T_GRU_BEFORE && !last_phase)
        return gru_before_gates(functions, w, 1, units, s, inputs);
    if (kind == K2T_GRU_BEFORE)
        gru_before_new(functions, w, 1, units, s, inputs);
    else
        one_step(functions, w, 1, units, s, inputs, kind);
    write_output(call, d, 0, time(step), at.part, at.parts, first, count, s.h_next + first, at.visits);
    if (step == length - 1 && call.final) {
        copy(s.h_next + first, count, state_in(call, call.final, d, 0, 0) + first);
        if (kind == K2T_LSTM) copy(s.c + first, count, state_in(call, call.final, d, 1, 0) + first);
    }
}

static void split_run(const K2tCall& call, const K2tPart& at, float* memory) {
    with_functions(call, [&](auto functions) { split_run_with(functions, call, at, memory); });
}
