// The gradient of one direction over some rows of the batch, step by step from the last one read to
// the first. Inside an isa_*.cpp's namespace.
//
// What must go step by step is here: the equations' derivatives and the product that carries a
// gradient to the step before. The sums over all steps (of weights, biases and inputs) are plain
// matrix products, which the caller takes.

// ---- packed weights: [group of units][k][vector][lane], k over the gates' padded units -------------

// Vectors side by side in a group: as many as are left, four at most.
static long group_of(long vectors) { return vectors < 4 ? vectors : 4; }

static long gradient_packed_size(const K2tShape& shape) {
    return gate_count(shape.kind) * whole(shape.units) * whole(shape.units);
}

// The gates' rows of weight_hh (G*H, H) in the order in which a step has their gradients.
static void gradient_pack(const K2tShape& shape, const float* weight_hh, float* to) {
    const long gates = gate_count(shape.kind), units = shape.units, width = whole(units);
    const long first = shape.kind == K2T_GRU_AFTER ? 2 : 0;  // n, r, z
    for (long v, unit = 0; unit < width; unit += v * LANES) {
        v = group_of((width - unit) / LANES);
        for (long gate = 0; gate < gates; ++gate)
            for (long j = 0; j < width; ++j)
                for (long i = unit; i < unit + v * LANES; ++i)
                    *to++ = j < units && i < units
                                ? weight_hh[((gate + first) % gates * units + j) * units + i]
                                : 0;
    }
}

// d[r] += gates[r] . weights for `count` gates from `first` on, of `all` that are packed.
static void carry(long rows, long width, long first, long count, long all, const float* gates,
                  long gates_stride, const float* packed, float* d) {
    for (long v, unit = 0; unit < width; unit += v * LANES) {
        v = group_of((width - unit) / LANES);
        const float* panel = packed + unit * all * width + first * width * v * LANES;
        float* to = d + unit;
        const long k = count * width;
        switch (v) {
            case 4: product<4>(rows, k, gates, gates_stride, panel, to, width, to, width); break;
            case 3: product<3>(rows, k, gates, gates_stride, panel, to, width, to, width); break;
            case 2: product<2>(rows, k, gates, gates_stride, panel, to, width, to, width); break;
            default: product<1>(rows, k, gates, gates_stride, panel, to, width, to, width);
        }
    }
}

// ---- derivatives, of what a nonlinearity gave ------------------------------------------------------

static inline Vec between(Vec y, float low, float high, float value) {
    return y > low ? (y < high ? all(value) : Vec{}) : Vec{};
}

static inline Vec slope(long kind, float parameter, Vec y) {
    switch (kind) {
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
        case K2T_HARD_TANH: return between(y, -1.0f, 1.0f, 1.0f);
        default: return all(1.0f);
    }
}

struct StandardSlopes : Standard {
    using Standard::Standard;
    Vec of_gate(Vec y) const { return y * (1.0f - y); }
    Vec of_act(Vec y) const { return 1.0f - y * y; }
};

struct ConfiguredSlopes : Configured {
    using Configured::Configured;
    Vec of_gate(Vec y) const { return slope(gate_kind, gate_parameter, y); }
    Vec of_act(Vec y) const { return slope(act_kind, act_parameter, y); }
};

// ---- one step of one row: gradients of the sums that the gates were taken of -----------------------
//
// `kept` and `gates` are this step's vectors, `width` apart; d_h is the gradient of the state after
// the step and becomes what of it goes past the gates to the state before.

template <class Slopes>
static void lstm_slopes(const Slopes& f, long width, const float* kept, const float* c_before,
                        float* d_h, float* d_c, float* gates) {
    for (long u = 0; u < width; u += LANES) {
        const Vec i = load(kept + u), forget = load(kept + width + u);
        const Vec g = load(kept + 2 * width + u), o = load(kept + 3 * width + u);
        const Vec shown = f.act(load(kept + 4 * width + u)), d = load(d_h + u);
        const Vec c = load(d_c + u) + d * o * f.of_act(shown);
        keep(gates + u, width, c * g * f.of_gate(i), c * load(c_before + u) * f.of_gate(forget),
             c * i * f.of_act(g), d * shown * f.of_gate(o));
        store(d_c + u, c * forget);
        store(d_h + u, Vec{});
    }
}

template <class Slopes>
static void gru_after_slopes(const Slopes& f, long width, const float* kept, float* d_h,
                             float* gates) {
    const float* before = kept + 4 * width;
    for (long u = 0; u < width; u += LANES) {
        const Vec r = load(kept + u), z = load(kept + width + u), n = load(kept + 2 * width + u);
        const Vec d = load(d_h + u), d_n = d * (1.0f - z) * f.of_act(n);
        keep(gates + u, width, d_n * r, d_n * load(kept + 3 * width + u) * f.of_gate(r),
             d * (load(before + u) - n) * f.of_gate(z), d_n);
        store(d_h + u, d * z);
    }
}

// GRU before, in two halves: between them n's gradient is carried to r h.
template <class Slopes>
static void gru_before_slopes(const Slopes& f, long width, const float* kept, float* d_h,
                              float* gates) {
    const float* before = kept + 3 * width;
    for (long u = 0; u < width; u += LANES) {
        const Vec z = load(kept + width + u), n = load(kept + 2 * width + u), d = load(d_h + u);
        keep(gates + width + u, width, d * (load(before + u) - n) * f.of_gate(z),
             d * (1.0f - z) * f.of_act(n));
        store(d_h + u, d * z);
    }
}

template <class Slopes>
static void reset_slopes(const Slopes& f, long width, const float* kept, const float* d_reset,
                         float* d_h, float* gates) {
    const float* before = kept + 3 * width;
    for (long u = 0; u < width; u += LANES) {
        const Vec r = load(kept + u), d = load(d_reset + u);
        store(gates + u, d * load(before + u) * f.of_gate(r));
        store(d_h + u, load(d_h + u) + d * r);
    }
}

template <class Slopes>
static void simple_slopes(const Slopes& f, long width, const float* kept, float* d_h,
                          float* gates) {
    for (long u = 0; u < width; u += LANES) {
        store(gates + u, load(d_h + u) * f.of_act(load(kept + u)));
        store(d_h + u, Vec{});
    }
}

// Zero the lanes past the last unit in each of `parts` vectors of W floats. What was kept of them is
// zero times an input, which is NaN for an infinite one, and a product would carry that to all units.
static void clear_padding(long units, long width, long parts, float* gates) {
    for (float* end = gates + parts * width; gates < end; gates += width)
        for (long u = units; u < width; ++u) gates[u] = 0;
}

// ---- the whole sequence ---------------------------------------------------------------------------

// GRU after has n's gradient twice: before and after the reset.
static long gradient_parts(long kind) { return gate_count(kind) + (kind == K2T_GRU_AFTER); }

static long gradient_scratch_size(const K2tShape& shape, long rows) {
    const long width = whole(shape.units);
    return rows * width * (gradient_parts(shape.kind) + 3) + width;
}

template <class Slopes>
static void gradient_with(const K2tGradient& call, const K2tTask& task, float* memory) {
    const long kind = call.shape.kind, units = call.shape.units, width = whole(units);
    const long rows = task.count, d = task.direction, count = gate_count(kind);
    const long kept_size = kept_parts(kind) * width, size = gradient_parts(kind) * width;
    const Slopes f(call);
    float* gates = memory;  // (rows, parts, W)
    float* d_h = gates + rows * size;
    float* d_c = d_h + rows * width;
    float* d_reset = d_c + rows * width;
    float* c_0 = d_reset + rows * width;

    // Rows come in order of falling length, so those that have begun are the first ones.
    auto length = [&](long r) { return call.lengths ? long(call.lengths[task.row(r)]) : call.time; };
    auto time = [&](long r, long step) { return d == 1 ? length(r) - 1 - step : step; };
    auto kept = [&](long r, long t) { return call.kept[d] + (task.row(r) * call.time + t) * kept_size; };
    auto given = [&](long r, long t) { return call.d_gates[d] + (task.row(r) * call.time + t) * size; };
    auto from = [&](const float* state, float* to) {
        copy(nullptr, width, to);
        if (state) copy(state, units, to);
    };
    for (long r = 0; r < rows; ++r) {
        from(state_in(call, call.d_final, d, 0, task.row(r)), d_h + r * width);
        if (kind == K2T_LSTM)
            from(state_in(call, call.d_final, d, 1, task.row(r)), d_c + r * width);
    }
    long n = 0;
    for (long step = rows ? length(0) - 1 : -1; step >= 0; --step) {
        while (n < rows && length(n) > step) ++n;
        for (long r = 0; r < n; ++r) {
            const long t = time(r, step);
            const float* at = kept(r, t);
            float *d_row = d_h + r * width, *to = gates + r * size;
            if (call.d_out)
                merge_into(d_row, K2T_SUM,
                           call.d_out + task.row(r) * call.d_out_batch_stride +
                               t * call.d_out_time_stride + d * units,
                           units);
            switch (kind) {
                case K2T_LSTM: {
                    const float* before = c_0;
                    if (step) before = kept(r, time(r, step - 1)) + 4 * width;
                    else from(call.c_0[d] ? call.c_0[d] + task.row(r) * units : nullptr, c_0);
                    lstm_slopes(f, width, at, before, d_row, d_c + r * width, to);
                    break;
                }
                case K2T_GRU_AFTER: gru_after_slopes(f, width, at, d_row, to); break;
                case K2T_GRU_BEFORE:
                    gru_before_slopes(f, width, at, d_row, to);
                    copy(nullptr, width, d_reset + r * width);
                    break;
                default: simple_slopes(f, width, at, d_row, to);
            }
            clear_padding(units, width, gradient_parts(kind), to);
        }
        const float* packed = call.packed[d];
        if (kind == K2T_GRU_BEFORE) {
            carry(n, width, 2, 1, count, gates + 2 * width, size, packed, d_reset);
            for (long r = 0; r < n; ++r) {
                reset_slopes(f, width, kept(r, time(r, step)), d_reset + r * width, d_h + r * width,
                             gates + r * size);
                clear_padding(units, width, 1, gates + r * size);
            }
            carry(n, width, 0, 2, count, gates, size, packed, d_h);
        } else {
            carry(n, width, 0, count, count, gates, size, packed, d_h);
        }
        for (long r = 0; r < n; ++r) copy(gates + r * size, size, given(r, time(r, step)));
    }
    for (long r = 0; r < rows; ++r) {
        copy(d_h + r * width, units, state_in(call, call.d_start, d, 0, task.row(r)));
        if (kind == K2T_LSTM)
            copy(d_c + r * width, units, state_in(call, call.d_start, d, 1, task.row(r)));
    }
}

static void gradient_run(const K2tGradient& call, const K2tTask& task, float* memory) {
    if (is_standard(call))
        gradient_with<StandardSlopes>(call, task, memory);
    else
        gradient_with<ConfiguredSlopes>(call, task, memory);
}
