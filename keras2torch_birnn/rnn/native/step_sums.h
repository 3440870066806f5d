// The sums over all steps of one direction's gradient: of its weights, its biases and its inputs. Inside
// an isa_*.cpp's namespace.
//
// The gradients of the gates are gathered, row by row and step by step, until there are enough of them
// for products that fetch each weight's gradient only once; so they never leave the cache.

constexpr int64_t GATHERED_ROWS = 192;

// Units of one gate that a product over the gathered rows takes at once.
constexpr int64_t TURNED_UNITS = most_rows(4);

// GRU after has n's gradient twice: before and after the reset.
static int64_t gradient_parts(int64_t kind) { return gate_count(kind) + (kind == K2T_GRU_AFTER); }

// The gate that comes first where a step has their gradients: n, r, z for GRU after, else torch's order.
static int64_t first_gate(int64_t kind) { return kind == K2T_GRU_AFTER ? 2 : 0; }

// ---- sums of one task: (G, H, F), (G, H, H), (parts, H), rows padded to whole vectors ----------------

struct Sums {
    float *ih, *hh, *bias;

    Sums(const K2tShape& shape, float* memory) {
        const int64_t rows = gate_count(shape.kind) * shape.units;
        ih = memory;
        hh = ih + rows * whole(shape.features);
        bias = hh + rows * whole(shape.units);
    }
};

static int64_t sums_size(const K2tShape& shape) {
    return gate_count(shape.kind) * shape.units * (whole(shape.features) + whole(shape.units)) +
           gradient_parts(shape.kind) * whole(shape.units);
}

// Add up the sums of all tasks of a direction, in their order, and write them as torch has them.
static void write_sums(const K2tWayBack& call, int64_t direction, const float* all, int64_t tasks) {
    const K2tShape& shape = call.shape;
    const int64_t units = shape.units, gates = gate_count(shape.kind), parts = gradient_parts(shape.kind);
    float* const* to = call.d_weights[direction];
    auto write = [&](int64_t at, int64_t columns, float* row) {
        copy(all + at, columns, row);
        for (int64_t task = 1; task < tasks; ++task)
            merge_into(row, K2T_SUM, all + task * sums_size(shape) + at, columns);
    };
    const Sums start(shape, nullptr);
    const int64_t hh = start.hh - start.ih, bias = start.bias - start.ih;
    for (int64_t row = 0; row < gates * units; ++row) {
        write(row * whole(shape.features), shape.features, to[0] + row * shape.features);
        write(hh + row * whole(units), units, to[1] + row * units);
    }
    for (int64_t gate = 0; gate < gates; ++gate) {
        const int64_t of_state = (gate + gates - first_gate(shape.kind)) % gates;
        write(bias + (parts - gates + gate) * whole(units), units, to[2] + gate * units);
        write(bias + of_state * whole(units), units, to[3] + gate * units);
    }
}

// ---- products with packed weights (`gradient_pack`) ---------------------------------------------------

// to[r] = start[r] + a[r] . weights, for `k` of the `all` rows of weights from `first` on.
static void back_product(int64_t rows, int64_t columns, int64_t first, int64_t k, int64_t all, const float* a,
                         int64_t a_stride, const float* packed, const float* start, int64_t start_stride, float* to) {
    for (int64_t v, column = 0; column < columns; column += v * LANES) {
        v = group_of((columns - column) / LANES);
        const float* panel = packed + column * all + first * v * LANES;
        const float* from = start_stride ? start + column : start;
        with_count<4>(v, [&](auto vectors) {
            product<decltype(vectors)::value>(rows, k, a, a_stride, panel, from, start_stride, to + column, columns);
        });
    }
}

// ---- gathered rows ------------------------------------------------------------------------------------

struct GatheredSteps {
    const K2tWayBack& call;
    const K2tTask& task;
    const TaskRows at;
    const int64_t d, units, width, features, gates, parts, stride;
    const Sums sums;
    float* d_gates;  // (rows, stride), the parts side by side
    int64_t n = 0;      // rows

    GatheredSteps(const K2tWayBack& call, const K2tTask& task, float* to, float* memory)
        : call(call), task(task), at{call, task}, d(task.direction), units(call.shape.units), width(whole(units)),
          features(call.shape.features), gates(gate_count(call.shape.kind)),
          parts(gradient_parts(call.shape.kind)), stride(stride_of(call.shape)),
          sums(call.shape, to) {
        copy(nullptr, parts * width, sums.bias);
        auto take = [&](int64_t floats) { return (memory += floats) - floats; };
        d_gates = take(GATHERED_ROWS * stride);
        turned_ = take(GATHERED_ROWS * parts * units);
        panel_ = take(GATHERED_ROWS * 4 * LANES);
        d_x_ = take(GATHERED_ROWS * whole(features));
        of_gate_ = take(GATHERED_ROWS * whole(features));
    }

    static int64_t size(const K2tShape& shape) {
        return GATHERED_ROWS * (stride_of(shape) + gradient_parts(shape.kind) * shape.units + 4 * LANES +
                                2 * whole(shape.features));
    }

    // Where the gradients of the gates of `rows` rows go next.
    float* room_for(int64_t rows) {
        if (n + rows > GATHERED_ROWS) add_up();
        return d_gates + n * stride;
    }

    // Count a row of the task, whose gradients have been written.
    void count(int64_t row, int64_t step) {
        row_[n] = row;
        step_[n++] = step;
    }

    // Add what was gathered to the sums, and begin anew.
    void add_up() {
        if (!n) return;
        for (int64_t j = 0; j < n; ++j)
            for (int64_t i = 0; i < parts * width; i += LANES)
                store(sums.bias + i, load(sums.bias + i) + load(d_gates + j * stride + i));
        turn();
        const int64_t kind = call.shape.kind, copies = mask_copies(call.shape);
        const int64_t last = kept_parts(kind) - 1, of_inputs = parts - gates;
        const float *of_x = call.input_masks[d], *of_h = call.state_masks[d];
        auto input = [&](int64_t, int64_t j) { return at.input(row_[j], step_[j]); };
        auto state = [&](int64_t gate, int64_t j) {  // what n of GRU before read, was dropped then
            return at.kept(row_[j], step_[j]) + (is_reset(gate) ? last - 1 : last) * width;
        };
        auto factors = [&](const float* masks, int64_t gate, int64_t j, int64_t columns) {
            const int64_t which = copies > 1 ? gate : 0;
            return masks ? masks + (which * call.batch + task.row(row_[j])) * columns : nullptr;
        };
        add(features, of_inputs, sums.ih, of_x && copies > 1, input,
            [&](int64_t gate, int64_t j) { return factors(of_x, gate, j, features); });
        add(units, gates - first_gate(kind), sums.hh, of_h && copies > 1, state, [&](int64_t gate, int64_t j) {
            return is_reset(gate) ? nullptr : factors(of_h, gate, j, units);
        });
        if (call.d_x) add_inputs(factors);
        n = 0;
        empty_ = false;
    }

    // Add what is left, or no step at all.
    void finish() {
        add_up();
        if (!empty_) return;
        copy(nullptr, gates * units * whole(features), sums.ih);
        copy(nullptr, gates * units * width, sums.hh);
    }

private:
    // Padded so that rows do not all map to the same cache sets.
    static int64_t stride_of(const K2tShape& shape) {
        return gradient_parts(shape.kind) * whole(shape.units) + LANES;
    }

    bool is_reset(int64_t gate) const { return call.shape.kind == K2T_GRU_BEFORE && gate == 2; }

    // d_gates -> [part][units, some at once][row][unit], as products over rows read them.
    void turn() {
        float* to = turned_;
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t u = 0; u < units; u += TURNED_UNITS) {
                const int64_t some = units - u < TURNED_UNITS ? units - u : TURNED_UNITS;
                const float* from = d_gates + part * width + u;
                // Whole vectors, of which the next ones replace what is too much: panel_ has room for that
                // of the last ones.
                for (int64_t j = 0; j < n && some == TURNED_UNITS; ++j, from += stride, to += TURNED_UNITS)
                    for (int64_t i = 0; i < TURNED_UNITS; i += LANES) store(to + i, load(from + i));
                for (int64_t j = 0; j < n && some < TURNED_UNITS; ++j, from += stride)
                    for (int64_t i = 0; i < some; ++i) *to++ = from[i];
            }
    }

    // Add to `to` (G, H, columns padded) the products of each gate's gradients with what the gate read.
    // The part of a gate is `first` further on, cyclically for states. each: a copy for every gate.
    template <class Read, class Factors>
    void add(int64_t columns, int64_t first, float* to, bool each, Read read, Factors factors) {
        alignas(64) static const float zeros[4 * LANES] = {};
        const bool cyclic = to == sums.hh;
        for (int64_t v, column = 0; column < columns; column += v * LANES) {
            v = group_of(whole(columns - column) / LANES);
            for (int64_t gate = 0; gate < gates; ++gate) {
                if (gate == 0 || each || (cyclic && is_reset(gate)))
                    for (int64_t j = 0; j < n; ++j)
                        pack_row(read(gate, j), factors(gate, j), column, v, columns,
                                 panel_ + j * v * LANES);
                const int64_t part = cyclic ? (gate + first) % gates : gate + first;
                float* out = to + gate * units * whole(columns) + column;
                const float* a = turned_ + part * n * units;
                for (int64_t u = 0; u < units; u += TURNED_UNITS) {
                    const int64_t some = units - u < TURNED_UNITS ? units - u : TURNED_UNITS;
                    float* at = out + u * whole(columns);
                    const Block block = with_count<4>(v, [=](auto vectors) {
                        return block_of<decltype(vectors)::value, TURNED_UNITS, true>(some);
                    });
                    block(n, a + u * n, some, panel_, empty_ ? zeros : at, empty_ ? 0 : whole(columns), at,
                          whole(columns));
                }
            }
        }
    }

    // Some columns of a row, times their factors if there are any, zeros past the last.
    static void pack_row(const float* from, const float* factors, int64_t column, int64_t v, int64_t columns,
                         float* to) {
        const int64_t count = columns - column < v * LANES ? columns - column : v * LANES;
        if (factors)
            copy_scaled(from + column, factors + column, count, to);
        else
            copy(from + column, count, to);
        for (int64_t i = count; i < v * LANES; ++i) to[i] = 0;
    }

    // Add the gradients of the inputs of all rows to d_x: of the two directions, the first to arrive
    // writes and the second adds.
    template <class Factors>
    void add_inputs(Factors factors) {
        alignas(64) static const float zeros[4 * LANES] = {};
        const int64_t columns = whole(features), all = gates * width;
        const float* packed = call.packed[d] + all * width;
        const float *from = d_gates + (parts - gates) * width, *masks = call.input_masks[d];
        const int64_t steps = masks && call.shape.apart ? gates : 1, k = all / steps;
        for (int64_t gate = 0; gate < steps; ++gate) {
            float* to = gate ? of_gate_ : d_x_;
            back_product(n, columns, gate * k, k, all, from + gate * k, stride, packed, zeros, 0, to);
            for (int64_t j = 0; j < n && masks; ++j)
                copy_scaled(to + j * columns, factors(masks, gate, j, features), features, to + j * columns);
            for (int64_t i = 0; i < n * columns && gate; i += LANES)
                store(d_x_ + i, load(d_x_ + i) + load(to + i));
        }
        for (int64_t j = 0; j < n; ++j) {
            const int64_t place = task.row(row_[j]) * call.time + at.time(row_[j], step_[j]);
            write_or_merge(call.directions == 2, task.visits + place, K2T_SUM, d_x_ + j * columns, features,
                           call.d_x + place * features);
        }
    }

    bool empty_ = true;  // whether nothing was added to the sums of the weights yet
    float *turned_, *panel_, *d_x_, *of_gate_;
    int64_t row_[GATHERED_ROWS], step_[GATHERED_ROWS];
};
