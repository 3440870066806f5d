// Products by AMX tiles: registers of 16 rows of 16 words. Inside an instruction set's namespace, after vectors.h;
// its LANES are 16, the words of a tile's row.
//
// A tile of weights is 16 words of one gate, a row of it LANES units. Words of a row of numbers are padded to whole
// tiles, so one configuration serves all products of as many rows.

constexpr int64_t TILE_ROWS = 16, TILE_WORDS = 16;
static_assert(LANES == TILE_WORDS, "a tile's row holds one vector");

// 0 to 3 are sums, 4 and 5 rows of numbers, 6 and 7 weights. Sums and numbers have `height` rows. As assembly, whose
// tiles are numbers of the template: an intrinsic wants a digit.
class Tiles {
public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() {
        if (height_) asm volatile("tilerelease");
    }

    void configure(int64_t height) {
        if (height == height_) return;
        height_ = height;
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } all;
        for (int64_t tile = 0; tile < 8; ++tile) {
            all.bytes[tile] = TILE_WORDS * 4;
            all.rows[tile] = static_cast<uint8_t>(tile < 6 ? height : TILE_ROWS);
        }
        asm volatile("ldtilecfg %0" ::"m"(all));
    }
    template <int TILE>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
    }
    template <int TILE>
    static void load(const uint32_t* from, int64_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * 4), "i"(TILE) : "memory");
    }
    template <int TILE>
    static void store(uint32_t* to, int64_t stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * 4), "i"(TILE) : "memory");
    }
    // Add products of two numbers of 16 bits in a word, or of four of 8, of which the weights have a sign.
    template <int64_t GROUP, int SUM, int NUMBERS, int WEIGHTS>
    static void dot() {
        if constexpr (GROUP == 2)
            asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(NUMBERS), "i"(WEIGHTS));
        else
            asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(NUMBERS), "i"(WEIGHTS));
    }

private:
    int64_t height_ = 0;
};

// Call body(Number<0>) to body(Number<COUNT - 1>).
template <int VALUE>
struct Number {
    static constexpr int value = VALUE;
};
template <int COUNT, int FIRST = 0, class Body>
static void for_each_number(Body body) {
    if constexpr (FIRST < COUNT) {
        body(Number<FIRST>{});
        for_each_number<COUNT, FIRST + 1>(body);
    }
}

// Tiles one after the other as they are read, of two gates in turn: [pair][tile][gate][word][lane].
struct TileOrder {
    static constexpr int64_t at(int64_t gates, int64_t all, int64_t word, int64_t gate) {
        const int64_t pair = gate / 2, wide = gates > 2 * pair + 1 ? 2 : 1;
        const int64_t tile = word / TILE_WORDS * wide + gate % 2;
        return (pair * 2 * all + tile * TILE_WORDS + word % TILE_WORDS) * LANES;
    }
};

template <class Format>
class TileProduct {
    typedef VectorProduct<Format, TileOrder> ByVectors;
    // A tile of a single row of integers takes longer than vectors, whose sums are the same.
    static constexpr bool by_vectors(int64_t rows) { return Format::GROUP == 4 && rows == 1; }

public:
    static constexpr int64_t DEPTH = TILE_WORDS;          // words of a row are padded to a multiple of it
    static constexpr int64_t SPARE_ROWS = TILE_ROWS - 1;  // rows of words that may be read behind the last
    typedef TileOrder Order;

    static constexpr int64_t panels_at_once(int64_t gates, int64_t rows) {
        return by_vectors(rows) ? ByVectors::panels_at_once(gates, rows) : 1;
    }

    // Two tiles, whose sums and states leave the second-level cache to the weights, unless these exceed it anyhow.
    static constexpr int64_t task_rows(int64_t weight_bytes) {
        return weight_bytes <= 1 << 20 ? 2 * TILE_ROWS : MOST_ROWS;
    }

    // As VectorProduct's. Rows are cut into tiles of equal height; what it makes more of them is dropped.
    template <int64_t V>
    void product(int64_t rows, int64_t panels, const Values<Format>& a, const uint32_t* panel, float* out,
                 int64_t out_stride) {
        if (by_vectors(rows)) return ByVectors::template product<V>(rows, panels, a, panel, out, out_stride);
        const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, height = (rows + tiles - 1) / tiles;
        tiles_.configure(height);
        const Operands all{rows, height, a, panel, out, out_stride};
        if (tiles == 1) return block<V, 1, V>(all, 0, 0);
        for (int64_t v = 0; v < V; v += 2)
            for (int64_t tile = 0; tile < tiles; tile += 2) {
                const bool two = tile + 1 < tiles;
                if (v + 1 < V)
                    two ? block<V, 2, 2>(all, tile, v) : block<V, 1, 2>(all, tile, v);
                else
                    two ? block<V, 2, 1>(all, tile, v) : block<V, 1, 1>(all, tile, v);
            }
    }

private:
    struct Operands {
        int64_t rows, height;
        const Values<Format>& a;
        const uint32_t* panel;
        float* out;
        int64_t out_stride;
    };

    // R tiles of rows by G of the V gates, four sums at most. Chains of dots hide each other's latency.
    template <int64_t V, int R, int G>
    static void block(const Operands& all, int64_t tile, int64_t gate) {
        static_assert(R * G <= 4, "sums are four tiles");
        constexpr int64_t TILE = TILE_ROWS * LANES;
        const int64_t height = all.height, of_row = all.a.stride, depth = all.a.count / TILE_WORDS;
        const uint32_t* const extras = all.panel + all.a.count * V * LANES;
        auto extras_of = [&](int64_t sum) { return extras + (gate + sum % G) * Format::EXTRAS * LANES; };
        for_each_number<R * G>([&](auto sum) { Tiles::load<sum.value>(extras_of(sum.value), 0); });
        const uint32_t* numbers = all.a.words + tile * height * of_row;
        const uint32_t* weights = all.panel + gate * depth * TILE;  // `gate` is the first of a pair
        for (int64_t k = 0; k < depth; ++k, numbers += TILE_WORDS) {
            for_each_number<R>([&](auto r) {
                Tiles::load<4 + r.value>(numbers + r.value * height * of_row, of_row);
            });
            for_each_number<G>([&](auto g) {
                constexpr int WEIGHTS = 6 + decltype(g)::value % 2;
                constexpr int64_t FIRST = g.value / 2 * 2, WIDE = G > FIRST + 1 ? 2 : 1;
                Tiles::load<WEIGHTS>(weights + (FIRST * depth + k * WIDE + g.value % 2) * TILE, LANES);
                for_each_number<R>([&](auto r) {
                    constexpr int SUM = decltype(r)::value * G + decltype(g)::value;
                    Tiles::dot<Format::GROUP, SUM, 4 + decltype(r)::value, WEIGHTS>();
                });
            });
        }
        for_each_number<R * G>([&](auto sum) {
            const int64_t first = (tile + sum.value / G) * height, count = all.rows - first;
            float* out = all.out + first * all.out_stride + (gate + sum.value % G) * LANES;
            if (Format::EXTRAS == 1 && count >= height)  // finished, as it began with the bias
                return Tiles::store<sum.value>(reinterpret_cast<uint32_t*>(out), all.out_stride);
            alignas(64) uint32_t found[TILE_ROWS * TILE_WORDS];
            Tiles::store<sum.value>(found, TILE_WORDS);
            const float* const of_units = reinterpret_cast<const float*>(extras_of(sum.value));
            for (int64_t r = 0; r < height && r < count; ++r, out += all.out_stride)
                store(out, Format::finish((typename Format::Sum)load_bits(found + r * TILE_WORDS), all.a.scales[first + r], of_units));
        });
    }

    Tiles tiles_;
};
