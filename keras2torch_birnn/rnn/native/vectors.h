// Products by vectors, of the formats in formats.h. Inside an instruction set's namespace, after it and product.h.

// Where a word of a gate begins in a panel of `all` words: [word][gate][lane].
struct WordOrder {
    static constexpr long at(long gates, long, long word, long gate) { return (word * gates + gate) * LANES; }
};

// PARTS: of each word of weights, widened in registers; 1 also where they were widened ahead.
template <class Format, long PARTS = Format::PARTS>
struct VectorProduct {
    static constexpr long DEPTH = 1, SPARE_ROWS = 0;  // as TileProduct's
    static constexpr long STORED = Format::PARTS / PARTS;  // words in memory for each packed one
    typedef VectorProduct<Format, 1> Ahead;
    typedef WordOrder Order;

    static constexpr long task_rows(long) { return MOST_ROWS; }

    static Bits weights(const uint32_t* from, long part) {
        if constexpr (PARTS > 1) return Format::part(load_bits(from), part);
        return load_bits(from);
    }

    // Write a panel's words as Ahead reads them: [k / GROUP][part][gate][lane].
    static void widen(long v, long words, const uint32_t* from, uint32_t* to) {
        for (long j = 0; j < words; ++j, to += PARTS * v * LANES)
            for (long i = 0; i < v * LANES; i += LANES, from += LANES) {
                const Bits packed = load_bits(from);
                K2T_UNROLL
                for (long part = 0; part < PARTS; ++part)
                    *reinterpret_cast<LooseBits*>(to + part * v * LANES + i) = Format::part(packed, part);
            }
        for (long i = 0; i < v * LANES * Format::EXTRAS; ++i) to[i] = from[i];
    }

    // The parts [begin, end) of the sums of R rows with G of the V gates of a panel, from the gate `first`
    // on; then their extras. Sums that are not complete stand in `out` meanwhile. A sum has one chain,
    // whatever R: so a row's numbers do not depend on the others.
    template <long V, long G, long R>
    static void block(long begin, long end, long all, const Values<Format>& a, long row, const uint32_t* panel,
                      long first, float* out, long out_stride) {
        typedef typename Format::Sum Sum;
        typedef Sum LooseSum __attribute__((aligned(4), may_alias));
        Sum sum[R][G];
        out += row * out_stride + first * LANES;
        K2T_UNROLL
        for (long r = 0; r < R; ++r)
            K2T_UNROLL
            for (long v = 0; v < G; ++v)
                sum[r][v] = begin ? *reinterpret_cast<LooseSum*>(out + r * out_stride + v * LANES) : Sum{};
        const uint32_t* from = panel + (begin * V + first) * LANES;
        const uint32_t* values = a.words + row * a.stride;
        for (long j = begin; j < end; ++j, from += V * LANES) {
            K2T_UNROLL
            for (long part = 0; part < PARTS; ++part) {
                Bits w[G];
                K2T_UNROLL
                for (long v = 0; v < G; ++v) w[v] = weights(from + v * LANES, part);
                K2T_UNROLL
                for (long r = 0; r < R; ++r) {
                    const Bits value = values[r * a.stride + j * PARTS + part] - Bits{};
                    K2T_UNROLL
                    for (long v = 0; v < G; ++v) sum[r][v] = Format::dot(sum[r][v], w[v], value);
                }
            }
        }
        const float* extras = reinterpret_cast<const float*>(panel + all * V * LANES);
        K2T_UNROLL
        for (long r = 0; r < R; ++r)
            K2T_UNROLL
            for (long v = 0; v < G; ++v) {
                float* to = out + r * out_stride + v * LANES;
                if (end == all)
                    store(to, Format::finish(sum[r][v], a.rows[row + r],
                                             extras + (first + v) * Format::EXTRAS * LANES));
                else
                    *reinterpret_cast<LooseSum*>(to) = sum[r][v];
            }
    }

    // The sums of one row with all V gates of P neighbouring panels: those of one panel are too few chains to
    // hide the latency of an instruction.
    template <class From, long V, long P>
    static void strip(long all, const Values<Format>& a, const uint32_t* panel, float* out) {
        const long distance = V * LANES * (all + Format::EXTRAS);
        typename Format::Sum sum[P][V] = {};
        for (long j = 0; j < all; ++j)
            K2T_UNROLL
            for (long part = 0; part < PARTS; ++part) {
                const Bits value = a.words[j * PARTS + part] - Bits{};
                K2T_UNROLL
                for (long p = 0; p < P; ++p)
                    K2T_UNROLL
                    for (long v = 0; v < V; ++v)
                        sum[p][v] = Format::dot(
                            sum[p][v], weights(panel + p * distance + From::at(V, all, j, v), part), value);
            }
        const float* extras = reinterpret_cast<const float*>(panel + V * LANES * all);
        K2T_UNROLL
        for (long p = 0; p < P; ++p)
            K2T_UNROLL
            for (long v = 0; v < V; ++v)
                store(out + (p * V + v) * LANES,
                      Format::finish(sum[p][v], a.rows[0], extras + p * distance + v * Format::EXTRAS * LANES));
    }

    // Widened weights and their mask take registers: where these are few, rows take two gates of four at a
    // time, so that there are sums enough for each weight that is widened.
    static constexpr bool FEW = PARTS > 1 && K2T_REGISTERS < 32;
    static constexpr long rows_at_once(long gates) {
        return !FEW ? most_rows(gates) : gates == 4 ? 2 : gates == 3 ? 3 : gates == 2 ? 5 : 8;
    }
    static constexpr long MOST_CHAINS = FEW ? 9 : 12;
    static constexpr long panels_at_once(long gates, long rows) { return rows == 1 ? MOST_CHAINS / gates : 1; }

    using Block = void (*)(long, long, long, const Values<Format>&, long, const uint32_t*, long, float*, long);
    using Strip = void (*)(long, const Values<Format>&, const uint32_t*, float*);

    template <long V, long G, long R = rows_at_once(G)>
    struct Blocks {
        static Block of(long rows) { return rows == R ? block<V, G, R> : Blocks<V, G, R - 1>::of(rows); }
    };
    template <long V, long G>
    struct Blocks<V, G, 0> {
        static Block of(long) { return nullptr; }
    };
    template <class From, long V, long P = panels_at_once(V, 1)>
    struct Strips {
        static Strip of(long panels) { return panels == P ? strip<From, V, P> : Strips<From, V, P - 1>::of(panels); }
    };
    template <class From, long V>
    struct Strips<From, V, 0> {
        static Strip of(long) { return nullptr; }
    };

    // out = a[0] . panel + bias of up to panels_at_once panels.
    template <long V, class From = Order>
    static void row_product(long panels, long k, const Values<Format>& a, const uint32_t* panel, float* out) {
        Strips<From, V>::of(panels)(k, a, panel, out);
    }

    // out[r] = a[r] . panel + bias for any number of rows; k: words of a row of weights. Of a single row, for up
    // to panels_at_once panels.
    template <long V>
    static void product(long rows, long panels, long k, const Values<Format>& a, const uint32_t* panel, float* out,
                        long out_stride) {
        constexpr long PAIR = 2;
        if (rows == 1) return row_product<V>(panels, k, a, panel, out);
        if (FEW && V == 2 * PAIR && rows > rows_at_once(V)) {
            for (long first = 0; first < V; first += PAIR)
                product_of<V, PAIR>(rows, k, a, panel, first, out, out_stride);
        } else {
            product_of<V, V>(rows, k, a, panel, 0, out, out_stride);
        }
    }

private:
    template <long V, long G>
    static void product_of(long rows, long all, const Values<Format>& a, const uint32_t* panel, long first,
                           float* out, long out_stride) {
        constexpr long MOST = rows_at_once(G);
        const long blocks = (rows + MOST - 1) / MOST;
        const long part = blocks <= 1 ? all : PANEL_FLOATS / (V * LANES);
        for (long begin = 0; begin < all; begin += part) {
            const long end = all - begin < part ? all : begin + part;
            for (long b = 0, row = 0; b < blocks; ++b) {
                const long height = rows / blocks + (b < rows % blocks);
                Blocks<V, G>::of(height)(begin, end, all, a, row, panel, first, out, out_stride);
                row += height;
            }
        }
    }
};
