// Products by vectors, of the formats in formats.h. Inside an instruction set's namespace, after it and product.h.

// Where a word of a gate begins in a panel of `all` words: [word][gate][lane].
struct WordOrder {
    static constexpr long at(long gates, long, long word, long gate) { return (word * gates + gate) * LANES; }
};

template <class Format, class Layout = WordOrder>
struct VectorProduct {
    static constexpr long DEPTH = 1, SPARE_ROWS = 0;  // as TileProduct's
    typedef Layout Order;

    static constexpr long task_rows(long) { return MOST_ROWS; }
    // Of a single row, the sums of one panel are too few chains to hide the latency of an instruction.
    static constexpr long panels_at_once(long gates, long rows) { return rows == 1 ? 12 / gates : 1; }

    // out[r] = a[r] . panel, all V gates: of any number of rows, or of one for up to panels_at_once panels.
    template <long V>
    static void product(long rows, long panels, const Values<Format>& a, const uint32_t* panel, float* out,
                        long out_stride) {
        if (rows == 1) return of_panels<V, panels_at_once(V, 1)>(panels, a, panel, out);
        // Parts of a panel that stay in the first-level cache for all rows.
        constexpr long MOST = most_rows(V), PART = PANEL_FLOATS / (V * LANES);
        const long blocks = (rows + MOST - 1) / MOST, part = blocks == 1 ? a.count : PART;
        for (long begin = 0; begin < a.count; begin += part) {
            const long end = a.count - begin < part ? a.count : begin + part;
            for (long b = 0, row = 0; b < blocks; ++b) {
                const long height = rows / blocks + (b < rows % blocks);
                of_rows<V, MOST>(height, begin, end, a, row, panel, out + row * out_stride, out_stride);
                row += height;
            }
        }
    }

private:
    template <long V, long P>
    static void of_panels(long panels, const Values<Format>& a, const uint32_t* panel, float* out) {
        if constexpr (P > 1)
            if (panels < P) return of_panels<V, P - 1>(panels, a, panel, out);
        block<V, 1, P>(0, a.count, a, 0, panel, out, 0);
    }
    template <long V, long R>
    static void of_rows(long rows, long begin, long end, const Values<Format>& a, long row, const uint32_t* panel,
                        float* out, long out_stride) {
        if constexpr (R > 1)
            if (rows < R) return of_rows<V, R - 1>(rows, begin, end, a, row, panel, out, out_stride);
        block<V, R, 1>(begin, end, a, row, panel, out, out_stride);
    }

    // The words [begin, end) of the sums of R rows with P neighbouring panels; R or P is 1. Sums that are not
    // complete stand in `out` meanwhile. A sum has one chain, whatever R and P: a row's numbers do not depend on
    // the others.
    template <long V, long R, long P>
    static void block(long begin, long end, const Values<Format>& a, long row, const uint32_t* panel, float* out,
                      long out_stride) {
        const long all = a.count, distance = V * LANES * (all + Format::EXTRAS);
        const float* const extras = reinterpret_cast<const float*>(panel + V * LANES * all);
        typename Format::Sum sum[R * P][V];
        K2T_UNROLL
        for (long n = 0; n < R * P; ++n)
            K2T_UNROLL
            for (long v = 0; v < V; ++v)
                sum[n][v] = (typename Format::Sum)load(begin ? out + n / P * out_stride + (n % P * V + v) * LANES
                                                            : extras + n % P * distance + v * Format::EXTRAS * LANES);
        const uint32_t* const values = a.words + row * a.stride;
        for (long j = begin; j < end; ++j)
            K2T_UNROLL
            for (long p = 0; p < P; ++p) {
                Bits w[V];
                K2T_UNROLL
                for (long v = 0; v < V; ++v) w[v] = load_bits(panel + p * distance + Layout::at(V, all, j, v));
                K2T_UNROLL
                for (long r = 0; r < R; ++r) {
                    const Bits value = values[r * a.stride + j] - Bits{};
                    K2T_UNROLL
                    for (long v = 0; v < V; ++v) sum[r * P + p][v] = Format::dot(sum[r * P + p][v], w[v], value);
                }
            }
        K2T_UNROLL
        for (long n = 0; n < R * P; ++n)
            K2T_UNROLL
            for (long v = 0; v < V; ++v) {
                const float* const of_unit = extras + n % P * distance + v * Format::EXTRAS * LANES;
                const Vec found = end == all ? Format::finish(sum[n][v], a.scales[row + n / P], of_unit) : (Vec)sum[n][v];
                store(out + n / P * out_stride + (n % P * V + v) * LANES, found);
            }
    }
};
