// Layers in reduced precision: layer.h and cells.h with products of fewer bits, by vectors or by tiles. All that a
// reduced_*.cpp includes inside its namespace.
//
// States, biases, gates and sums are float32 (int8: sums are exact integers first). A matrix is packed panel by
// panel: words of [lane] in the product's order, then its extra vectors [gate][EXTRAS][lane].
#include "simd.h"
#include "fingerprint.h"
#include "product.h"
#include "packed.h"
#include "cells.h"
#include "layer.h"
#include "formats.h"
#include "vectors.h"
#if defined(__AMX_TILE__)
#include "tiles.h"
#endif

// ---- nonlinearities ---------------------------------------------------------------------------------------------

// 2^(scale x) = (1 + rest) power, for exponents up to 42. Of float32's 24 bits some 16 are right, near zero those of
// the rest: eight more than the products keep. A NaN is kept in the rest.
static inline Exponential split_power(Vec x, float scale) {
    const float limit = 42.0f / (scale < 0 ? -scale : scale);
    const Vec bounded = clamp(x, -limit, limit);
    const Vec shifted = fused(bounded, all(scale), all(12582912.0f));  // as in split_exponential
    const Vec r = fused(bounded, all(scale), 12582912.0f - shifted);
    Vec p = fused(r, all(9.61811002e-3f), all(5.58372885e-2f));
    p = fused(p, r, all(2.40232527e-1f));
    p = fused(p, r, all(6.93136871e-1f));
    return {p * r, (Vec)(((IntVec)shifted << 23) + 0x3f800000)};
}

// a / b, of which as many bits are right.
#if K2T_LANES == 16
static inline Vec coarse_quotient(Vec a, Vec b) {
    return a * (Vec)_mm512_rcp14_ps((__m512)b);
}
#else
static inline Vec coarse_quotient(Vec a, Vec b) {
    return a / b;
}
#endif

struct Coarse : Standard {
    using Standard::Standard;
    Vec gate(Vec x) const {
        const Exponential e = split_power(x, -1.44269504f);
        return coarse_quotient(all(1.0f), fused(e.rest, e.power, 1.0f + e.power));
    }
    Vec act(Vec x) const {
        const Exponential e = split_power(x, 2.88539008f);
        const Vec m = fused(e.rest, e.power, e.power - 1.0f);
        return coarse_quotient(m, m + 2.0f);
    }
};

// ---- packed weights: the matrix of the input, then the recurrent one (GRU before: r and z, then n) ---------------

template <class Format, class Product>
struct Reduced {
    // Words of a row of weights, padded as the product wants them.
    static constexpr int64_t groups(int64_t k) {
        const int64_t words = (k + Format::GROUP - 1) / Format::GROUP;
        return (words + Product::DEPTH - 1) / Product::DEPTH * Product::DEPTH;
    }
    static constexpr int64_t panel_words(int64_t v, int64_t k) { return v * LANES * (groups(k) + Format::EXTRAS); }
    static int64_t matrix_words(int64_t v, int64_t units, int64_t k) {
        return whole(units) / LANES * panel_words(v, k);
    }
    static int64_t input_words(const K2tShape& shape) {
        return matrix_words(gate_count(shape.kind), shape.units, shape.features);
    }
    static int64_t packed_size(const K2tShape& shape) {
        const int64_t units = shape.units, gates = gate_count(shape.kind);
        return input_words(shape) + (shape.kind == K2T_GRU_BEFORE
                                         ? matrix_words(2, units, units) + matrix_words(1, units, units)
                                         : matrix_words(gates, units, units));
    }

    // weight (G*H, K), the gates [first, first + V) -> panels. Return what follows.
    static uint32_t* pack_matrix(const float* weight, const float* bias, int64_t first, int64_t v, int64_t units,
                                 int64_t k, uint32_t* to) {
        for (int64_t unit = 0; unit < units; unit += LANES, to += panel_words(v, k)) {
            for (int64_t i = 0; i < panel_words(v, k); ++i) to[i] = 0;
            float* const extras = reinterpret_cast<float*>(to + v * LANES * groups(k));
            for (int64_t gate = 0; gate < v; ++gate)
                for (int64_t lane = 0; lane < LANES && unit + lane < units; ++lane) {
                    const int64_t channel = (first + gate) * units + unit + lane;
                    const float* const row = weight + channel * k;
                    const float scale = Format::measure(row, k);
                    constexpr int64_t SIZE = 32 / Format::GROUP;  // bits of a number
                    uint32_t sum = 0;
                    for (int64_t i = 0; i < k; ++i) {
                        const uint32_t bits = Format::weight(row[i], scale);
                        sum += static_cast<uint32_t>(static_cast<int8_t>(bits));  // Int8's
                        uint32_t* const word = to + Product::Order::at(v, groups(k), i / Format::GROUP, gate) + lane;
                        *word |= bits << (i % Format::GROUP * SIZE);
                    }
                    Format::store_extras(bias ? bias[channel] : 0, scale, sum,
                                         extras + gate * Format::EXTRAS * LANES + lane);
                }
        }
        return to;
    }
    static void pack(const K2tShape& shape, const float* weight_ih, const float* weight_hh, const float* bias_ih,
                     const float* bias_hh, float* packed) {
        const int64_t gates = gate_count(shape.kind), units = shape.units;
        const bool before = shape.kind == K2T_GRU_BEFORE;
        uint32_t* to = reinterpret_cast<uint32_t*>(packed);
        to = pack_matrix(weight_ih, bias_ih, 0, gates, units, shape.features, to);
        to = pack_matrix(weight_hh, bias_hh, 0, before ? 2 : gates, units, units, to);
        if (before) pack_matrix(weight_hh, bias_hh, 2, 1, units, units, to);
    }

    // ---- a task -----------------------------------------------------------------------------------------------

    // Memory for rows of values. Of tiles an odd number in a row: its rows would share a few sets of the cache.
    static constexpr int64_t values_words(int64_t k) {
        const int64_t written = whole(k) / Format::GROUP, words = written < groups(k) ? groups(k) : written;
        return Product::DEPTH > 1 ? words / Product::DEPTH / 2 * 2 * Product::DEPTH + Product::DEPTH : words;
    }
    static int64_t values_size(int64_t rows, int64_t k) {
        return (rows + Product::SPARE_ROWS) * values_words(k) + whole(rows);
    }
    static Values<Format> take_values(int64_t rows, int64_t k, float*& memory) {
        uint32_t* const words = reinterpret_cast<uint32_t*>(memory);
        memory += values_size(rows, k);
        return {words, values_words(k), groups(k), memory - whole(rows)};
    }
    static int64_t input_rows(const K2tShape& shape, int64_t rows) { return rows * block_steps(shape, rows); }

    struct Matrix {
        Product& by;
        const Values<Format>& values;
        const uint32_t* panels;
    };

    // The weights of a direction, and the rows that are multiplied by them.
    struct Weights {
        Product& by;
        const uint32_t *input, *recurrent;
        Values<Format> x, state;

        Matrix of_state() const { return {by, state, recurrent}; }
        Matrix of_reset(int64_t units) const { return {by, state, recurrent + matrix_words(2, units, units)}; }
    };

    static int64_t task_size(const K2tCall& call, int64_t rows) {
        const K2tShape& shape = call.shape;
        return values_size(input_rows(shape, rows), shape.features) + values_size(rows, shape.units) +
               scratch_size(call, rows);
    }
    static void run(const K2tCall& call, const K2tTask& task, float* memory) {
        const K2tShape& shape = call.shape;
        const uint32_t* const input = reinterpret_cast<const uint32_t*>(call.packed[task.direction]);
        Product by;
        const Values<Format> x = take_values(input_rows(shape, task.count), shape.features, memory);
        const Values<Format> state = take_values(task.count, shape.units, memory);
        const Weights w{by, input, input + input_words(shape), x, state};
        with_functions<Coarse>(call, [&](auto functions) { run_with(functions, w, call, task, memory); });
    }
    static int64_t task_rows(const K2tShape& shape) {
        return Product::task_rows(4 * (packed_size(shape) - input_words(shape)));
    }

    // ---- products, as layer.h and cells.h call them -------------------------------------------------------------

    friend void input_product(const K2tShape& shape, const Weights& w, int64_t rows, const Operand& x, int64_t, int64_t,
                              const Inputs& out) {
        const int64_t gates = gate_count(shape.kind);
        const uint32_t* panel = w.input;
        w.x.convert(rows, x.data, x.stride, shape.features);
        for (int64_t unit = 0; unit < shape.units; unit += LANES, panel += panel_words(gates, shape.features)) {
            float* const to = out.of(unit);
            switch (gates) {
                case 4: w.by.template product<4>(rows, 1, w.x, panel, to, out.row); break;
                case 3: w.by.template product<3>(rows, 1, w.x, panel, to, out.row); break;
                default: w.by.template product<1>(rows, 1, w.x, panel, to, out.row);
            }
        }
    }

    // The products of a single row are with several panels at once.
    template <int64_t G, class Cell, class Finish>
    friend void for_units(int64_t rows, int64_t units, const Scratch& s, const Operand& state, const Matrix& matrix,
                          const Inputs& inputs, Cell cell, Finish finish) {
        const int64_t width = whole(units), most = Product::panels_at_once(G, rows);
        const bool single = rows == 1;
        matrix.values.convert(rows, state.data, state.stride, units);
        for (int64_t done = 0, count; done < s.panels; done += count) {
            count = s.panels - done < most ? s.panels - done : most;
            const int64_t panel = s.turned ? s.panels - done - count : done, unit = panel * LANES;
            float* const sums = s.sums + (single ? unit * G : 0);
            matrix.by.template product<G>(rows, count, matrix.values, matrix.panels + panel * panel_words(G, units),
                                          sums, G * LANES);
            if (single) continue;
            const float* in = inputs.of(unit);
            for (int64_t r = 0; r < rows; ++r, in += inputs.row)
                cell(r, unit, r * width + unit, in, sums + r * G * LANES);
            for (int64_t r = 0; r < rows; ++r) finish(r, unit, r * width + unit);
        }
        for (int64_t unit = 0; unit < width && single; unit += LANES)
            cell(0, unit, unit, inputs.of(unit), s.sums + unit * G);
        for (int64_t unit = 0; unit < width && single; unit += LANES) finish(0, unit, unit);
    }

    static constexpr K2tKernel KERNEL = {
        packed_size, pack, task_size, run, nullptr, nullptr, nullptr, fingerprint, LANES,
        nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, task_rows,
    };
};
