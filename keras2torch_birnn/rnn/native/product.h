// The matrix product, and the order in which weights lie for it. Inside an isa_*.cpp's namespace.
//
// A panel is the weights of LANES neighbouring units: for each k, one vector per gate. So the V
// gates of a unit come out side by side in V accumulators, and the cell's equations follow at once.
// Packed: [panel][k][gate][lane], padded with zeros to whole panels.

// Call body(Count<n>{}) for a count n of 1 to MOST.
template <int64_t N>
struct Count {
    static constexpr int64_t value = N;
};
template <int64_t MOST, class Body>
static auto with_count(int64_t count, Body body) {
    if constexpr (MOST > 1)
        if (count < MOST) return with_count<MOST - 1>(count, body);
    return body(Count<MOST>{});
}

constexpr int64_t whole(int64_t units) { return (units + LANES - 1) / LANES * LANES; }

// weight (G*H, K), the gates [first, first + V) -> panels. Apart: [panel][gate][k][lane].
static float* pack_panels(const float* weight, int64_t first, int64_t v, int64_t units, int64_t k, bool apart,
                          float* to) {
    if (apart && v > 1) {
        for (int64_t unit = 0; unit < units; unit += LANES)
            for (int64_t gate = first; gate < first + v; ++gate) {
                const int64_t count = units - unit < LANES ? units - unit : LANES;
                to = pack_panels(weight + (gate * units + unit) * k, 0, 1, count, k, false, to);
            }
        return to;
    }
    for (int64_t unit = 0; unit < units; unit += LANES)
        for (int64_t j = 0; j < k; ++j)
            for (int64_t gate = first; gate < first + v; ++gate)
                for (int64_t lane = 0; lane < LANES; ++lane)
                    *to++ = unit + lane < units ? weight[(gate * units + unit + lane) * k + j] : 0;
    return to;
}

// out[r] = start[r] + a[r] . panel for R rows: R * V accumulators, all in registers.
// SPLIT > 1 sums k in several chains, where R * V alone are too few to hide the latency of an FMA.
// TURNED: a is (k, a_stride), not (rows, a_stride).
template <int64_t V, int64_t R, int64_t SPLIT, bool TURNED>
static void block(int64_t k, const float* a, int64_t a_stride, const float* panel, const float* start,
                  int64_t start_stride, float* out, int64_t out_stride) {
    Vec sum[SPLIT][R][V];
    K2T_UNROLL
    for (int64_t r = 0; r < R; ++r)
        K2T_UNROLL
        for (int64_t v = 0; v < V; ++v) {
            sum[0][r][v] = load(start + r * start_stride + v * LANES);
            K2T_UNROLL
            for (int64_t s = 1; s < SPLIT; ++s) sum[s][r][v] = Vec{};
        }
    int64_t j = 0;
    for (; j + SPLIT <= k; j += SPLIT, panel += SPLIT * V * LANES) {
        K2T_UNROLL
        for (int64_t s = 0; s < SPLIT; ++s) {
            Vec w[V];
            K2T_UNROLL
            for (int64_t v = 0; v < V; ++v) w[v] = load(panel + (s * V + v) * LANES);
            K2T_UNROLL
            for (int64_t r = 0; r < R; ++r) {
                const float scalar = TURNED ? a[(j + s) * a_stride + r] : a[r * a_stride + j + s];
                K2T_UNROLL
                for (int64_t v = 0; v < V; ++v) sum[s][r][v] += w[v] * scalar;
            }
        }
    }
    for (; j < k; ++j, panel += V * LANES) {
        K2T_UNROLL
        for (int64_t r = 0; r < R; ++r)
            K2T_UNROLL
            for (int64_t v = 0; v < V; ++v)
                sum[0][r][v] += load(panel + v * LANES) * (TURNED ? a[j * a_stride + r] : a[r * a_stride + j]);
    }
    K2T_UNROLL
    for (int64_t r = 0; r < R; ++r)
        K2T_UNROLL
        for (int64_t v = 0; v < V; ++v) {
            K2T_UNROLL
            for (int64_t s = 1; s < SPLIT; ++s) sum[0][r][v] += sum[s][r][v];
            store(out + r * out_stride + v * LANES, sum[0][r][v]);
        }
}

// Vectors side by side in a group: as many as are left, four at most.
static int64_t group_of(int64_t vectors) { return vectors < 4 ? vectors : 4; }

using Block = void (*)(int64_t, const float*, int64_t, const float*, const float*, int64_t, float*, int64_t);

// Rows at once for V gates: what the register file holds beside V weights and one scalar.
constexpr int64_t most_rows(int64_t v) {
    return REGISTERS == 32 ? (v == 4 ? 6 : v == 3 ? 8 : v == 2 ? 12 : 12)
                               : (v == 4 ? 3 : v == 3 ? 4 : v == 2 ? 6 : 10);
}

constexpr int64_t chains(int64_t v, int64_t r) { return r * v >= 8 ? 1 : r * v >= 4 ? 2 : 4; }

// Of 1 to MOST rows.
template <int64_t V, int64_t MOST = most_rows(V), bool TURNED = false>
static Block block_of(int64_t rows) {
    return with_count<MOST>(rows, [](auto r) -> Block {
        return block<V, decltype(r)::value, chains(V, decltype(r)::value), TURNED>;
    });
}

// The largest part of a panel that is used for all rows before the next part is fetched: it stays
// in the first-level cache.
constexpr int64_t PANEL_FLOATS = 6144;

// out[r] = start[r] + a[r] . panel for any number of rows. A bias is a start with stride 0; start may
// be out itself.
template <int64_t V>
static void product(int64_t rows, int64_t k, const float* a, int64_t a_stride, const float* panel,
                    const float* start, int64_t start_stride, float* out, int64_t out_stride) {
    if (rows == 1)
        return block<V, 1, chains(V, 1), false>(k, a, a_stride, panel, start, start_stride, out, out_stride);
    const int64_t blocks = (rows + most_rows(V) - 1) / most_rows(V);
    const int64_t part = blocks <= 1 ? k : PANEL_FLOATS / (V * LANES);
    for (int64_t first = 0; first == 0 || first < k; first += part) {
        const int64_t length = k - first < part ? k - first : part;
        for (int64_t b = 0, row = 0; b < blocks; ++b) {
            const int64_t height = rows / blocks + (b < rows % blocks);
            block_of<V>(height)(length, a + row * a_stride + first, a_stride, panel + first * V * LANES,
                                start + row * start_stride, start_stride, out + row * out_stride, out_stride);
            row += height;
        }
        start = out;
        start_stride = out_stride;
    }
}

// Vectors, one per row, of which each of several gates has a copy of its own, or all the same one.
struct Operand {
    const float* data;
    int64_t stride;    // between rows
    int64_t distance;  // between copies; 0: there is one
};

// The sums of a panel's G gates. Apart: each gate has a panel of its own, and its own copy of `a`.
template <int64_t G>
static void product_of_gates(int64_t rows, int64_t k, const Operand& a, bool apart, const float* panel,
                             const float* bias, float* out, int64_t out_stride) {
    if (!apart) return product<G>(rows, k, a.data, a.stride, panel, bias, 0, out, out_stride);
    for (int64_t gate = 0; gate < G; ++gate)
        product<1>(rows, k, a.data + gate * a.distance, a.stride, panel + gate * k * LANES,
                   bias + gate * LANES, 0, out + gate * LANES, out_stride);
}
