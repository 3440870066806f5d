// One direction of a layer in reduced precision over some rows of the batch: layer.h with the products
// of vectors.h or tiles.h. Inside an instruction set's namespace, after layer.h, whose output and merge it uses.
//
// States, biases, gates and sums are float32 (int8: sums are exact integers first). A matrix is packed
// panel by panel: words of [lane] in the product's order, then its extra vectors [gate][EXTRAS][lane].

template <class Format, class Product = VectorProduct<Format>>
struct Reduced {
    typedef typename Format::Row Row;
    // Multiplies by weights that were widened ahead; Product itself where none are widened.
    typedef typename Product::Ahead Ahead;
    static constexpr bool WIDENS = Ahead::STORED > 1;

    // Words of a row: of weights, padded as the product wants them; and of values.
    static constexpr long groups(long k) {
        const long words = (k + Format::GROUP - 1) / Format::GROUP;
        return (words + Product::DEPTH - 1) / Product::DEPTH * Product::DEPTH;
    }
    // Of tiles an odd number in a row: its rows would share a few sets of the first-level cache.
    static constexpr long row_words(long k) {
        const long written = whole(k) / Format::GROUP * Format::PARTS;
        const long words = written < groups(k) ? groups(k) : written;
        return Product::DEPTH > 1 ? words / Product::DEPTH / 2 * 2 * Product::DEPTH + Product::DEPTH : words;
    }
    template <class By = Product>
    static constexpr long panel_words(long v, long k) {
        return v * LANES * (groups(k) * By::STORED + Format::EXTRAS);
    }
    template <class By = Product>
    static long matrix_words(long v, long units, long k) {
        return whole(units) / LANES * panel_words<By>(v, k);
    }

    // ---- packed weights: the matrix of the input, then the recurrent one (GRU before: r and z, then n)

    static long packed_size(const K2tShape& shape) { return input_words(shape) + recurrent_words(shape); }
    template <class By = Product>
    static long input_words(const K2tShape& shape) {
        return matrix_words<By>(gate_count(shape.kind), shape.units, shape.features);
    }
    template <class By = Product>
    static long recurrent_words(const K2tShape& shape) {
        const long units = shape.units;
        if (shape.kind != K2T_GRU_BEFORE) return matrix_words<By>(gate_count(shape.kind), units, units);
        return matrix_words<By>(2, units, units) + matrix_words<By>(1, units, units);
    }

    // weight (G*H, K), the gates [first, first + V) -> panels.
    static uint32_t* pack_matrix(const float* weight, const float* bias, long first, long v, long units,
                                 long k, uint32_t* to) {
        for (long unit = 0; unit < units; unit += LANES, to += panel_words(v, k)) {
            for (long i = 0; i < panel_words(v, k); ++i) to[i] = 0;
            for (long gate = 0; gate < v; ++gate)
                for (long lane = 0; lane < LANES && unit + lane < units; ++lane) {
                    const long channel = (first + gate) * units + unit + lane;
                    const Row row = convert_row<Format>(
                        weight + channel * k, k, [&](long i, Vec numbers, const Row& of_row) {
                            alignas(4) uint32_t words[LANES / Format::GROUP];
                            const Bits sums = Format::convert(numbers, of_row, words, true);
                            for (long w = 0; w * Format::GROUP < LANES && i + w * Format::GROUP < k; ++w)
                                to[Product::Order::at(v, groups(k), i / Format::GROUP + w, gate) + lane] = words[w];
                            return sums;
                        });
                    float* extras = reinterpret_cast<float*>(to + v * LANES * groups(k));
                    Format::store_extras(row, bias ? bias[channel] : 0,
                                         extras + gate * Format::EXTRAS * LANES + lane);
                }
        }
        return to;
    }
    static void pack(const K2tShape& shape, const float* weight_ih, const float* weight_hh,
                     const float* bias_ih, const float* bias_hh, float* packed) {
        const long gates = gate_count(shape.kind), units = shape.units;
        uint32_t* to = reinterpret_cast<uint32_t*>(packed);
        to = pack_matrix(weight_ih, bias_ih, 0, gates, units, shape.features, to);
        if (shape.kind != K2T_GRU_BEFORE) {
            pack_matrix(weight_hh, bias_hh, 0, gates, units, units, to);
            return;
        }
        to = pack_matrix(weight_hh, bias_hh, 0, 2, units, units, to);
        pack_matrix(weight_hh, bias_hh, 2, 1, units, units, to);
    }

    // ---- weights widened ahead ----------------------------------------------------------------------
    // Widening takes registers and instructions from every product. Ahead it is done once in a call, which takes
    // as long as some rows' products and twice the memory: for weights that many rows read in it, several at once.

    static constexpr long MANY_ROWS = 32, SEVERAL_ROWS = 3;

    static bool widens_input(const K2tCall& call, long rows) { return WIDENS && rows * call.time >= MANY_ROWS; }
    static bool widens(const K2tCall& call, long rows) { return rows >= SEVERAL_ROWS && widens_input(call, rows); }

    // Return what follows in `to`; `from` moves to what follows there.
    static uint32_t* widen(long v, long units, long k, const uint32_t*& from, uint32_t* to) {
        for (long unit = 0; unit < units; unit += LANES, from += panel_words(v, k), to += panel_words<Ahead>(v, k))
            Product::widen(v, groups(k), from, to);
        return to;
    }
    static void widen_recurrent(const K2tShape& shape, const uint32_t* from, uint32_t* to) {
        const long gates = gate_count(shape.kind), units = shape.units;
        const bool before = shape.kind == K2T_GRU_BEFORE;
        to = widen(before ? 2 : gates, units, units, from, to);
        if (before) widen(1, units, units, from, to);
    }

    template <class By>
    static void input_product(By& by, const K2tShape& shape, const uint32_t* panel, long rows,
                              const Values<Format>& a, const Inputs& out) {
        const long gates = gate_count(shape.kind), k = shape.features, words = groups(k) * By::STORED;
        for (long unit = 0; unit < shape.units; unit += LANES, panel += panel_words<By>(gates, k)) {
            float* to = out.of(unit);
            switch (gates) {
                case 4: by.template product<4>(rows, 1, words, a, panel, to, out.row); break;
                case 3: by.template product<3>(rows, 1, words, a, panel, to, out.row); break;
                default: by.template product<1>(rows, 1, words, a, panel, to, out.row);
            }
        }
    }

    // ---- one step ---------------------------------------------------------------------------------

    // Buffers of a task; every row is padded to whole panels. By: Product or Ahead.
    template <class By>
    struct State {
        By& by;
        Values<Format> values;  // of the state, or of r h: the rows of the recurrent product
        float* sums;    // that product of one panel: (rows, [G][lane]); of a single row, of all
        float *h, *h_next;  // state before the step, (rows, H), and after it; before that, with `reset`, a gate's ratio
        float* c;           // LSTM: cell state; GRU: the sum of n, or r h
        float* reset;
        bool turned;
    };

    // Multiply rows of `state` by the matrix, then call cell(at, in, sum) for the units of each panel in
    // each row: `at` is their offset in (rows, H), `in` their product with the input. Then finish(at), as in
    // cells.h.
    template <long V, class By, class Cell, class Finish>
    static void for_units(long rows, long units, const State<By>& s, const float* state,
                          const uint32_t* matrix, const Inputs& inputs, Cell cell, Finish finish) {
        const long width = whole(units), panels = width / LANES, most = By::panels_at_once(V, rows);
        const long parts = (panels + most - 1) / most;
        const bool single = rows == 1;
        for (long r = 0; r < rows; ++r) s.values.convert(r, state + r * width, units);
        for (long part = 0, done = 0; part < parts; ++part) {
            const long count = panels / parts + (part < panels % parts);
            const long panel = s.turned ? panels - done - count : done, unit = panel * LANES;
            done += count;
            float* const sums = s.sums + (single ? unit * V : 0);
            s.by.template product<V>(rows, count, groups(units) * By::STORED, s.values,
                                     matrix + panel * panel_words<By>(V, units), sums, V * LANES);
            // The units of this panel in each row; of a single row those of all panels, when all products are there.
            if (single && part + 1 < parts) continue;
            const long all = single ? panels : rows, next = single ? LANES : width;
            const long at = single ? 0 : unit, next_in = single ? inputs.panel : inputs.row;
            const float* in = inputs.of(at);
            const float* sum = single ? s.sums : sums;
            for (long i = 0; i < all; ++i) cell(at + i * next, in + i * next_in, sum + i * V * LANES);
            for (long i = 0; i < all; ++i) finish(at + i * next);
        }
    }

    template <class Functions, class By>
    static void one_step(const Functions& f, const K2tShape& shape, const uint32_t* matrix, long rows,
                         const State<By>& s, const Inputs& inputs) {
        const long units = shape.units;
        auto sum_of = [](const float* in, const float* sum, long v) {
            return load(in + v * LANES) + load(sum + v * LANES);
        };
        auto nothing_more = [](long) {};
        // (1 - z) n + z h
        auto mix = [](const Ratio& z, Vec h, const Ratio& n) {
            const Vec kept = z.numerator * h, added = (z.denominator - z.numerator) * n.numerator;
            return fused(kept, n.denominator, added) / (z.denominator * n.denominator);
        };
        // A gate that waits for another value: where its ratio is.
        auto keep = [&](const Ratio& gate, long at) { Functions::keep(gate, s.h_next + at, s.reset + at); };
        auto kept = [&](long at) { return Functions::kept(s.h_next + at, s.reset + at); };
        switch (static_cast<K2tKind>(shape.kind)) {
            case K2T_LSTM:
                return for_units<4>(
                    rows, units, s, s.h, matrix, inputs,
                    [&](long at, const float* in, const float* sum) K2T_INLINE {
                        const Ratio i = f.gate(sum_of(in, sum, 0)), forget = f.gate(sum_of(in, sum, 1));
                        const Ratio g = f.act(sum_of(in, sum, 2)), o = f.gate(sum_of(in, sum, 3));
                        const Vec below = i.denominator * g.denominator, above = i.numerator * g.numerator;
                        const Vec kept_c = forget.numerator * load(s.c + at);
                        const Vec next = fused(kept_c, below, above * forget.denominator);
                        store(s.c + at, next / (below * forget.denominator));
                        keep(o, at);
                    },
                    [&](long at) K2T_INLINE {
                        const Ratio o = kept(at), of_c = f.act(load(s.c + at));
                        store(s.h_next + at,
                              o.numerator * of_c.numerator / (o.denominator * of_c.denominator));
                    });
            case K2T_GRU_AFTER:
                return for_units<3>(
                    rows, units, s, s.h, matrix, inputs,
                    [&](long at, const float* in, const float* sum) K2T_INLINE {
                        const Ratio reset = f.gate(sum_of(in, sum, 0));
                        keep(f.gate(sum_of(in, sum, 1)), at);
                        const Vec of_h = reset.numerator * load(sum + 2 * LANES) / reset.denominator;
                        store(s.c + at, of_h + load(in + 2 * LANES));
                    },
                    [&](long at) K2T_INLINE {
                        const Ratio z = kept(at), n = f.act(load(s.c + at));
                        store(s.h_next + at, mix(z, load(s.h + at), n));
                    });
            case K2T_GRU_BEFORE:
                for_units<2>(rows, units, s, s.h, matrix, inputs,
                             [&](long at, const float* in, const float* sum) K2T_INLINE {
                                 const Ratio reset = f.gate(sum_of(in, sum, 0));
                                 store(s.c + at, reset.numerator * load(s.h + at) / reset.denominator);
                                 keep(f.gate(sum_of(in, sum, 1)), at);
                             },
                             nothing_more);
                matrix += matrix_words<By>(2, units, units);
                return for_units<1>(
                    rows, units, s, s.c, matrix, inputs,
                    [&](long at, const float* in, const float* sum) K2T_INLINE {
                        const Ratio z = kept(at), n = f.act(load(in + 2 * LANES) + load(sum));
                        store(s.h_next + at, mix(z, load(s.h + at), n));
                    },
                    nothing_more);
            case K2T_SIMPLE:
                for_units<1>(rows, units, s, s.h, matrix, inputs,
                             [&](long at, const float* in, const float* sum) K2T_INLINE {
                                 const Ratio next = f.act(load(in) + load(sum));
                                 store(s.h_next + at, next.numerator / next.denominator);
                             },
                             nothing_more);
        }
    }

    // ---- the whole sequence -----------------------------------------------------------------------

    // Whole vectors of floats for what is kept of some rows of values.
    static long rows_size(long count) { return whole(count * static_cast<long>((sizeof(Row) + 3) / 4)); }

    static long widened_size(const K2tCall& call, long rows) {
        const K2tShape& shape = call.shape;
        return (widens_input(call, rows) ? input_words<Ahead>(shape) : 0) +
               (widens(call, rows) ? recurrent_words<Ahead>(shape) : 0);
    }

    static long scratch_size(const K2tCall& call, long rows) {
        const K2tShape& shape = call.shape;
        const long block = rows * block_steps(input_words(shape), rows), width = whole(shape.units);
        return widened_size(call, rows) + (block + Product::SPARE_ROWS) * row_words(shape.features) +
               (rows + Product::SPARE_ROWS) * row_words(shape.units) + rows_size(block) + rows_size(rows) +
               Inputs::size(shape, block) + sums_size(rows, shape.units) + rows * 4 * width;
    }

    // by: multiplies by the input's matrix; of_step: by the recurrent one.
    template <class Functions, class By, class OfStep>
    static void run_by(By& by, OfStep& of_step, const Functions& functions, const K2tCall& call, const K2tTask& task,
                       const uint32_t* input_matrix, const uint32_t* matrix, float* memory) {
        const K2tShape& shape = call.shape;
        const long units = shape.units, width = whole(units), features = shape.features, rows = task.count;

        const long steps_at_once = block_steps(input_words(shape), rows), block = rows * steps_at_once;
        auto take = [&](long floats) { return (memory += floats) - floats; };
        auto take_values = [&](long count, long k) {
            const long all = (count + Product::SPARE_ROWS) * row_words(k);
            uint32_t* words = reinterpret_cast<uint32_t*>(take(all));
            for (long i = 0; Product::SPARE_ROWS && i < all; ++i) words[i] = 0;
            return Values<Format>{words, row_words(k), reinterpret_cast<Row*>(take(rows_size(count)))};
        };
        const Values<Format> x = take_values(block, features);
        const Inputs inputs(shape, rows, block, take(Inputs::size(shape, block)));
        State<OfStep> s{of_step, take_values(rows, units), nullptr, nullptr, nullptr, nullptr, nullptr, false};
        s.sums = take(sums_size(rows, units));
        s.h = take(rows * 4 * width);
        s.h_next = s.h + rows * width;
        s.c = s.h_next + rows * width;
        s.reset = s.c + rows * width;
        const TaskRows at{call, task};
        at.begin(s);
        long running = rows;
        for (long first = 0;; first += steps_at_once) {
            while (running > 0 && at.length(running - 1) <= first) --running;
            if (running == 0) return;
            long gathered = 0, left = running, active[MOST_BLOCK_ROWS];
            for (long step = first; step < first + steps_at_once; ++step) {
                while (left > 0 && at.length(left - 1) <= step) --left;
                active[step - first] = left;
                for (long r = 0; r < left; ++r) {
                    const float* from = at.input(r, step);
                    if (rows > 1 && step + steps_at_once < at.length(r))
                        fetch_row<0>(at.input(r, step + steps_at_once), features);
                    x.convert(gathered++, from, features);
                }
            }
            input_product(by, shape, input_matrix, gathered, x, inputs);
            Inputs in = inputs;
            for (long step = first; step < first + steps_at_once && active[step - first]; ++step) {
                const long n = active[step - first];
                one_step(functions, shape, matrix, n, s, in);
                in.data += n * inputs.row;
                at.end_step(step, n, s);
            }
        }
    }

    template <class Functions>
    static void run_with(const Functions& functions, const K2tCall& call, const K2tTask& task, float* memory) {
        const K2tShape& shape = call.shape;
        const long gates = gate_count(shape.kind), units = shape.units, features = shape.features;
        const uint32_t* input_matrix = reinterpret_cast<const uint32_t*>(call.packed[task.direction]);
        const uint32_t* matrix = input_matrix + input_words(shape);
        Product by;
        if constexpr (WIDENS)
            if (widens_input(call, task.count)) {
                Ahead ahead;
                uint32_t* const widened = reinterpret_cast<uint32_t*>(memory);
                uint32_t* const recurrent = widen(gates, units, features, input_matrix, widened);
                memory += widened_size(call, task.count);
                if (!widens(call, task.count))
                    return run_by(ahead, by, functions, call, task, widened, matrix, memory);
                widen_recurrent(shape, matrix, recurrent);
                return run_by(ahead, ahead, functions, call, task, widened, recurrent, memory);
            }
        run_by(by, by, functions, call, task, input_matrix, matrix, memory);
    }

    static void run(const K2tCall& call, const K2tTask& task, float* memory) {
        with_functions<StandardRatios, ConfiguredRatios>(
            call, [&](auto functions) { run_with(functions, call, task, memory); });
    }

    static long task_rows(const K2tShape& shape) { return Product::task_rows(4 * recurrent_words(shape)); }

    static constexpr K2tKernel KERNEL = {
        packed_size, pack, scratch_size, run, nullptr, nullptr, nullptr, fingerprint, LANES,
        nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, task_rows,
    };
};
