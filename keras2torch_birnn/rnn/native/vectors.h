// Products by vectors, of the formats in formats.h. Inside an instruction set's namespace, after it and product.h.

// Where a word of a gate begins in a panel of `all` words: [word][gate][lane].
struct WordOrder {
    static constexpr int64_t at(int64_t gates, int64_t, int64_t word, int64_t gate) {
        return (word * gates + gate) * LANES;
    }
};

template <class Format, class Layout = WordOrder>
struct VectorProduct {
    static constexpr int64_t DEPTH = 1, SPARE_ROWS = 0;  // as TileProduct's
    typedef Layout Order;

    static constexpr int64_t task_rows(int64_t) { return MOST_ROWS; }
    // Of a single row, the sums of one panel are too few chains to hide the latency of an instruction.
    static constexpr int64_t panels_at_once(int64_t gates, int64_t rows) { return rows == 1 ? 12 / gates : 1; }

    // out[r] = a[r] . panel, all V gates: of any number of rows, or of one for up to panels_at_once panels.
    template <int64_t V>
    static void product(int64_t rows, int64_t panels, const Values<Format>& a, const uint32_t* panel, float* out,
                        int64_t out_stride) {
        if (rows == 1) return of_panels<V, panels_at_once(V, 1)>(panels, a, panel, out);
        // Parts of a panel that stay in the first-level cache for all rows.
        constexpr int64_t MOST = most_rows(V), PART = PANEL_FLOATS / (V * LANES);
        const int64_t blocks = (rows + MOST - 1) / MOST, part = blocks == 1 ? a.count : PART;
        for (int64_t begin = 0; begin < a.count; begin += part) {
            const int64_t end = a.count - begin < part ? a.count : begin + part;
            for (int64_t b = 0, row = 0; b < blocks; ++b) {
                const int64_t height = rows / blocks + (b < rows % blocks);
                of_rows<V, MOST>(height, begin, end, a, row, panel, out + row * out_stride, out_stride);
                row += height;
            }
        }
    }

private:
    template <int64_t V, int64_t P>
    static void of_panels(int64_t panels, const Values<Format>& a, const uint32_t* panel, float* out) {
        if constexpr (P > 1)
            if (panels < P) return of_panels<V, P - 1>(panels, a, panel, out);
        block<V, 1, P>(0, a.count, a, 0, panel, out, 0);
    }
    template <int64_t V, int64_t R>
    static void of_rows(int64_t rows, int64_t begin, int64_t end, const Values<Format>& a, int64_t row,
                        const uint32_t* panel, float* out, int64_t out_stride) {
        if constexpr (R > 1)
            if (rows < R) return of_rows<V, R - 1>(rows, begin, end, a, row, panel, out, out_stride);
        block<V, R, 1>(begin, end, a, row, panel, out, out_stride);
    }

    // The words [begin, end) of the sums of R rows with P neighbouring panels; R or P is 1. Sums that are not
    // complete stand in `out` meanwhile. A sum has one chain, whatever R and P: a row's numbers do not depend on
    // the others.
    template <int64_t V, int64_t R, int64_t P>
    static void block(int64_t begin, int64_t end, const Values<Format>& a, int64_t row,
                      const uint32_t* panel, float* out, int64_t out_stride) {
        const int64_t all = a.count, distance = V * LANES * (all + Format::EXTRAS);
        const float* const extras = reinterpret_cast<const float*>(panel + V * LANES * all);
        typename Format::Sum sum[R * P][V];
        K2T_UNROLL
        for (int64_t n = 0; n < R * P; ++n)
            K2T_UNROLL
            for (int64_t v = 0; v < V; ++v)
                sum[n][v] = (typename Format::Sum)load(begin ? out + n / P * out_stride + (n % P * V + v) * LANES
                                                            : extras + n % P * distance + v * Format::EXTRAS * LANES);
        const uint32_t* const values = a.words + row * a.stride;
        for (int64_t j = begin; j < end; ++j)
            K2T_UNROLL
            for (int64_t p = 0; p < P; ++p) {
                Bits w[V];
                K2T_UNROLL
                for (int64_t v = 0; v < V; ++v) w[v] = load_bits(panel + p * distance + Layout::at(V, all, j, v));
                K2T_UNROLL
                for (int64_t r = 0; r < R; ++r) {
                    const Bits value = values[r * a.stride + j] - Bits{};
                    K2T_UNROLL
                    for (int64_t v = 0; v < V; ++v) sum[r * P + p][v] = Format::dot(sum[r * P + p][v], w[v], value);
                }
            }
        K2T_UNROLL
        for (int64_t n = 0; n < R * P; ++n)
            K2T_UNROLL
            for (int64_t v = 0; v < V; ++v) {
                const float* const of_unit = extras + n % P * distance + v * Format::EXTRAS * LANES;
                const Vec found = end == all ? Format::finish(sum[n][v], a.scales[row + n / P], of_unit) : (Vec)sum[n][v];
                store(out + n / P * out_stride + (n % P * V + v) * LANES, found);
            }
    }
};
