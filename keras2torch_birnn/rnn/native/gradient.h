// The gradient of one direction over some rows of the batch, step by step from the last one read to
// the first. Inside an isa_*.cpp's namespace.
//
// What must go step by step is here: the equations' derivatives and the product that carries a
// gradient to the step before. The sums over all steps are in step_sums.h.

// ---- packed weights: [group of columns][k][vector][lane], k over the gates' padded units -----------

// Those of the state, in the order in which a step has the gradients of the gates; then those of the
// inputs, in torch's order.
static int64_t gradient_packed_size(const K2tShape& shape) {
    return gate_count(shape.kind) * whole(shape.units) * (whole(shape.units) + whole(shape.features));
}

// The gates' rows of a weight (G*H, columns), from gate `first` on.
static float* pack_back(const K2tShape& shape, const float* weight, int64_t columns, int64_t first, float* to) {
    const int64_t gates = gate_count(shape.kind), units = shape.units, width = whole(columns);
    for (int64_t v, column = 0; column < width; column += v * LANES) {
        v = group_of((width - column) / LANES);
        const int64_t some = columns - column < v * LANES ? columns - column : v * LANES;
        for (int64_t gate = 0; gate < gates; ++gate)
            for (int64_t j = 0; j < whole(units); ++j, to += v * LANES) {
                const int64_t given = j < units ? some : 0;
                copy(weight + ((gate + first) % gates * units + j) * columns + column, given, to);
                copy(nullptr, v * LANES - given, to + given);
            }
    }
    return to;
}

// weight_ih: null if the gradient of the inputs is not wanted.
static void gradient_pack(const K2tShape& shape, const float* weight_ih, const float* weight_hh, float* to) {
    to = pack_back(shape, weight_hh, shape.units, first_gate(shape.kind), to);
    if (weight_ih) pack_back(shape, weight_ih, shape.features, 0, to);
}

// ---- derivatives, of what a nonlinearity gave ------------------------------------------------------

static inline Vec between(Vec y, float low, float high, float value) {
    return y > low ? (y < high ? all(value) : Vec{}) : Vec{};
}

static inline Vec slope(int64_t kind, float parameter, Vec y) {
    switch (static_cast<K2tActivation>(kind)) {
        case K2T_LINEAR: return all(1.0f);
        case K2T_TANH: return 1.0f - y * y;
        case K2T_SIGMOID: return y * (1.0f - y);
        case K2T_HARD_SIGMOID_0_2: return between(y, 0.0f, 1.0f, 0.2f);
        case K2T_HARD_SIGMOID_1_6: return between(y, 0.0f, 1.0f, 1.0f / 6.0f);
        case K2T_RELU: return y > 0.0f ? all(1.0f) : Vec{};
        case K2T_RELU6: return between(y, 0.0f, 6.0f, 1.0f);
        case K2T_LEAKY_RELU: return y > 0.0f ? all(1.0f) : all(parameter);
        case K2T_ELU: return y > 0.0f ? all(1.0f) : y + parameter;
        case K2T_SELU: return y > 0.0f ? all(1.05070098735548049f) : y + 1.75809934084737685f;
        case K2T_SOFTSIGN: {
            const Vec rest = 1.0f - (y < 0.0f ? -y : y);
            return rest * rest;
        }
        case K2T_SILU:
        case K2T_HARD_SILU: break;  // refused by k2t_gradient
    }
    __builtin_trap();
}

// A nonlinearity's value and slope.
struct Point {
    Vec y, slope;
};

// From the value of a gate or of the other nonlinearity.
struct StandardSlopes : Standard {
    using Standard::Standard;
    Point gate_at(Vec y) const { return {y, y * (1.0f - y)}; }
    Point act_at(Vec y) const { return {y, 1.0f - y * y}; }
};

struct ConfiguredSlopes : Configured {
    using Configured::Configured;
    Point gate_at(Vec y) const { return {y, slope(gate_kind, gate_parameter, y)}; }
    Point act_at(Vec y) const { return {y, slope(act_kind, act_parameter, y)}; }
};

// ---- one step of one row: gradients of the sums that the gates were taken of -----------------------
//
// `kept` and `gates` are this step's vectors, `width` apart; d_h is the gradient of the state after
// the step and becomes what of it goes past the gates to the state before. `next` is what was kept of
// the step that comes next, on the way back: it is far from `kept`, and is fetched meanwhile.

template <int64_t PARTS>
static inline void fetch(const float* next, int64_t width) {
    K2T_UNROLL
    for (int64_t part = 0; part < PARTS; ++part) __builtin_prefetch(next + part * width);
}

template <class Slopes>
static void lstm_slopes(const Slopes& f, int64_t width, const float* kept, const float* next,
                        const float* c_before, float* d_h, float* d_c, float* gates) {
    for (int64_t u = 0; u < width; u += LANES) {
        fetch<6>(next + u, width);
        const Point i = f.gate_at(load(kept + u)), forget = f.gate_at(load(kept + width + u));
        const Point g = f.act_at(load(kept + 2 * width + u)), o = f.gate_at(load(kept + 3 * width + u));
        const Point shown = f.act_at(f.act(load(kept + 4 * width + u)));
        const Vec d = load(d_h + u), c = load(d_c + u) + d * o.y * shown.slope;
        keep(gates + u, width, c * g.y * i.slope, c * load(c_before + u) * forget.slope,
             c * i.y * g.slope, d * shown.y * o.slope);
        store(d_c + u, c * forget.y);
        store(d_h + u, Vec{});
    }
}

template <class Slopes>
static void gru_after_slopes(const Slopes& f, int64_t width, const float* kept, const float* next,
                             float* d_h, float* gates) {
    const float* before = kept + 4 * width;
    for (int64_t u = 0; u < width; u += LANES) {
        fetch<5>(next + u, width);
        const Point r = f.gate_at(load(kept + u)), z = f.gate_at(load(kept + width + u));
        const Point n = f.act_at(load(kept + 2 * width + u));
        const Vec d = load(d_h + u), d_n = d * (1.0f - z.y) * n.slope;
        keep(gates + u, width, d_n * r.y, d_n * load(kept + 3 * width + u) * r.slope,
             d * (load(before + u) - n.y) * z.slope, d_n);
        store(d_h + u, d * z.y);
    }
}

// GRU before, in two halves: between them n's gradient is carried to r h.
template <class Slopes>
static void gru_before_slopes(const Slopes& f, int64_t width, const float* kept, const float* next,
                              float* d_h, float* gates) {
    const float* before = kept + 4 * width;
    for (int64_t u = 0; u < width; u += LANES) {
        fetch<5>(next + u, width);
        const Point z = f.gate_at(load(kept + width + u)), n = f.act_at(load(kept + 2 * width + u));
        const Vec d = load(d_h + u);
        keep(gates + width + u, width, d * (load(before + u) - n.y) * z.slope,
             d * (1.0f - z.y) * n.slope);
        store(d_h + u, d * z.y);
    }
}

template <class Slopes>
static void reset_slopes(const Slopes& f, int64_t width, const float* kept, const float* d_reset,
                         float* d_h, float* gates) {
    const float* before = kept + 4 * width;
    for (int64_t u = 0; u < width; u += LANES) {
        const Point r = f.gate_at(load(kept + u));
        const Vec d = load(d_reset + u);
        store(gates + u, d * load(before + u) * r.slope);
        store(d_h + u, load(d_h + u) + d * r.y);
    }
}

template <class Slopes>
static void simple_slopes(const Slopes& f, int64_t width, const float* kept, float* d_h,
                          float* gates) {
    for (int64_t u = 0; u < width; u += LANES) {
        store(gates + u, load(d_h + u) * f.act_at(load(kept + u)).slope);
        store(d_h + u, Vec{});
    }
}

// Zero the lanes past the last unit in each of `parts` vectors of W floats. What was kept of them is
// zero times an input, which is NaN for an infinite one, and a product would carry that to all units.
static void clear_padding(int64_t units, int64_t width, int64_t parts, float* gates) {
    for (float* end = gates + parts * width; gates < end; gates += width)
        for (int64_t u = units; u < width; ++u) gates[u] = 0;
}

// ---- the whole sequence ---------------------------------------------------------------------------

static int64_t gradient_scratch_size(const K2tCall& call, int64_t rows) {
    const int64_t width = whole(call.shape.units);
    return GatheredSteps::size(call.shape) + 3 * rows * width + width +
           (has_masks(call.state_masks) ? masks_size(call.shape, rows) : 0);
}

template <class Slopes>
static void gradient_with(const Slopes& f, const K2tWayBack& call, const K2tTask& task, float* sums,
                          float* memory) {
    const int64_t kind = call.shape.kind, units = call.shape.units, width = whole(units);
    const int64_t rows = task.count, d = task.direction, count = gate_count(kind);
    const int64_t parts = gradient_parts(kind);
    auto take = [&](int64_t floats) { return (memory += floats) - floats; };
    GatheredSteps gathered(call, task, sums, take(GatheredSteps::size(call.shape)));
    float* d_h = take(rows * width);
    float* d_c = take(rows * width);
    float* d_reset = take(rows * width);
    float* c_0 = take(width);
    const int64_t size = gathered.stride;
    const Dropped masks = take_masks(call.state_masks[d], call.shape, call.batch, task, memory);
    // to[r] += what `gates_count` gates from `first` on carry back to the state that they have read.
    auto carry_back = [&](int64_t n, int64_t first, int64_t gates_count, const float* from, float* to) {
        auto carry = [&](int64_t gate, int64_t some, const float* a, float* sum) {
            back_product(n, width, gate * width, some * width, count * width, a, size, call.packed[d], sum,
                         width, sum);
        };
        if (!masks.masks) return carry(first, gates_count, from, to);
        const int64_t each = call.shape.apart ? 1 : gates_count;
        for (int64_t gate = first; gate < first + gates_count; gate += each, from += each * width) {
            copy(nullptr, n * width, masks.values);
            carry(gate, each, from, masks.values);
            const float* mask = masks.of((gate + first_gate(kind)) % count);
            for (int64_t i = 0; i < n * width; i += LANES)
                store(to + i, load(to + i) + load(masks.values + i) * load(mask + i));
        }
    };

    const TaskRows all{call, task};
    auto from = [&](const float* state, float* to) {
        copy(nullptr, width, to);
        if (state) copy(state, units, to);
    };
    for (int64_t r = 0; r < rows; ++r) {
        from(state_in(call, call.d_final, d, 0, task.row(r)), d_h + r * width);
        if (kind == K2T_LSTM)
            from(state_in(call, call.d_final, d, 1, task.row(r)), d_c + r * width);
    }
    int64_t n = 0;
    for (int64_t step = rows ? all.length(0) - 1 : -1; step >= 0; --step) {
        while (n < rows && all.length(n) > step) ++n;
        float* gates = gathered.room_for(n);
        for (int64_t r = 0; r < n; ++r) {
            const float *at = all.kept(r, step), *next = step ? all.kept(r, step - 1) : at;
            float *d_row = d_h + r * width, *to = gates + r * size;
            if (call.d_out)
                merge_into(d_row, K2T_SUM,
                           call.d_out + task.row(r) * call.d_out_batch_stride +
                               all.time(r, step) * call.d_out_time_stride + d * units,
                           units);
            switch (static_cast<K2tKind>(kind)) {
                case K2T_LSTM: {
                    const float* before = c_0;
                    if (step) before = next + 4 * width;
                    else from(call.c_0[d] ? call.c_0[d] + task.row(r) * units : nullptr, c_0);
                    lstm_slopes(f, width, at, next, before, d_row, d_c + r * width, to);
                    break;
                }
                case K2T_GRU_AFTER: gru_after_slopes(f, width, at, next, d_row, to); break;
                case K2T_GRU_BEFORE:
                    gru_before_slopes(f, width, at, next, d_row, to);
                    copy(nullptr, width, d_reset + r * width);
                    break;
                case K2T_SIMPLE: simple_slopes(f, width, at, d_row, to); break;
            }
            clear_padding(units, width, parts, to);
        }
        if (kind == K2T_GRU_BEFORE) {
            carry_back(n, 2, 1, gates + 2 * width, d_reset);
            for (int64_t r = 0; r < n; ++r) {
                reset_slopes(f, width, all.kept(r, step), d_reset + r * width, d_h + r * width, gates + r * size);
                clear_padding(units, width, 1, gates + r * size);
            }
            carry_back(n, 0, 2, gates, d_h);
        } else {
            carry_back(n, 0, count, gates, d_h);
        }
        for (int64_t r = 0; r < n; ++r) gathered.count(r, step);
    }
    gathered.finish();
    for (int64_t r = 0; r < rows; ++r) {
        copy(d_h + r * width, units, state_in(call, call.d_start, d, 0, task.row(r)));
        if (kind == K2T_LSTM)
            copy(d_c + r * width, units, state_in(call, call.d_start, d, 1, task.row(r)));
    }
}

static void gradient_run(const K2tWayBack& call, const K2tTask& task, float* sums, float* memory) {
    with_functions<StandardSlopes, ConfiguredSlopes>(
        call, [&](auto slopes) { gradient_with(slopes, call, task, sums, memory); });
}
