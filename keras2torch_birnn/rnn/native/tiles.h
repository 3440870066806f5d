// Products by AMX tiles: registers of 16 rows of 16 words. Inside an instruction set's namespace, after
// vectors.h; its LANES are 16, the words of a tile's row.
//
// A tile of weights is 16 words of one gate, a row of it LANES units. Words of a row of numbers are padded to whole
// tiles, so one configuration serves all products of as many rows.

constexpr long TILE_ROWS = 16, TILE_WORDS = 16;
static_assert(LANES == TILE_WORDS, "a tile's row holds one vector");

#if defined(__AVX512VNNI__)
constexpr bool HAS_DOTS_OF_BYTES = true;
#else
constexpr bool HAS_DOTS_OF_BYTES = false;
#endif

// ---- operations on tiles: by the processor, or computed here ------------------------------------------------
// 0 to 3 are sums, 4 and 5 rows of numbers, 6 and 7 weights. Sums and numbers have `height` rows.

#if defined(__AMX_TILE__)
class Tiles {
public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() { _tile_release(); }

    void configure(long height) {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } all;
        for (long tile = 0; tile < 8; ++tile) {
            all.bytes[tile] = TILE_WORDS * 4;
            all.rows[tile] = static_cast<uint8_t>(tile < 6 ? height : TILE_ROWS);
        }
        finish_writes();
        _tile_loadconfig(&all);
    }

    // Compilers may move writes to memory past the instructions that read it as tiles.
    static void finish_writes() { asm volatile("" ::: "memory"); }

// An operation with a number of a tile that is known to the compiler, and to the assembler a digit. Sums have
// cases of their own: clang refuses an instruction that is given a tile twice, even where it is never reached.
#define K2T_OF_SUM(NUMBER, OPERATION) \
    switch (NUMBER) { \
        case 0: OPERATION(0); break; \
        case 1: OPERATION(1); break; \
        case 2: OPERATION(2); break; \
        default: OPERATION(3); \
    }
#define K2T_OF_TILE(NUMBER, OPERATION) \
    switch (NUMBER) { \
        case 4: OPERATION(4); break; \
        case 5: OPERATION(5); break; \
        case 6: OPERATION(6); break; \
        case 7: OPERATION(7); break; \
        default: K2T_OF_SUM(NUMBER, OPERATION) \
    }
    template <int TILE>
    void zero() {
#define K2T_ZERO(tile) _tile_zero(tile)
        K2T_OF_TILE(TILE, K2T_ZERO)
    }
    template <int TILE>
    void load(const uint32_t* from, long stride) {
#define K2T_LOAD(tile) _tile_loadd(tile, from, stride * 4)
        K2T_OF_TILE(TILE, K2T_LOAD)
    }
    template <int TILE>
    void store(uint32_t* to, long stride) const {
#define K2T_STORE(tile) _tile_stored(tile, to, stride * 4)
        K2T_OF_TILE(TILE, K2T_STORE)
    }
    // Two numbers of 16 bits in a word, or four of 8: signed ones by the weights, which have no sign.
#define K2T_DOT(sum, numbers, weights) \
    if constexpr (GROUP == 2) _tile_dpbf16ps(sum, numbers, weights); \
    else _tile_dpbsud(sum, numbers, weights)
#define K2T_DOT_04(sum) K2T_DOT(sum, 4, 6)
#define K2T_DOT_05(sum) K2T_DOT(sum, 5, 6)
#define K2T_DOT_14(sum) K2T_DOT(sum, 4, 7)
#define K2T_DOT_15(sum) K2T_DOT(sum, 5, 7)
    template <long GROUP, int SUM, int NUMBERS, int WEIGHTS>
    void dot() {
        if constexpr (NUMBERS == 4 && WEIGHTS == 6) {
            K2T_OF_SUM(SUM, K2T_DOT_04)
        } else if constexpr (WEIGHTS == 6) {
            K2T_OF_SUM(SUM, K2T_DOT_05)
        } else if constexpr (NUMBERS == 4) {
            K2T_OF_SUM(SUM, K2T_DOT_14)
        } else {
            K2T_OF_SUM(SUM, K2T_DOT_15)
        }
    }
};
#else
// The results of the instructions, to the bit, on any processor.
class Tiles {
public:
    void configure(long height) { height_ = height; }
    static void finish_writes() {}

    template <int TILE>
    void zero() { all_[TILE] = {}; }
    template <int TILE>
    void load(const uint32_t* from, long stride) {
        zero<TILE>();
        for (long row = 0; row < rows(TILE); ++row) all_[TILE].row[row] = load_bits(from + row * stride);
    }
    template <int TILE>
    void store(uint32_t* to, long stride) const {
        for (long row = 0; row < rows(TILE); ++row)
            *reinterpret_cast<LooseBits*>(to + row * stride) = all_[TILE].row[row];
    }
    template <long GROUP, int SUM, int NUMBERS, int WEIGHTS>
    void dot() {
        for (long row = 0; row < height_; ++row) {
            Bits& sum = all_[SUM].row[row];
            const Bits numbers = all_[NUMBERS].row[row];
            sum = GROUP == 2 ? add_bfloat16(sum, numbers, all_[WEIGHTS].row)
                             : add_int8(sum, numbers, all_[WEIGHTS].row);
        }
    }

private:
    struct Tile {
        Bits row[TILE_ROWS];
    };
    long rows(int tile) const { return tile < 6 ? height_ : TILE_ROWS; }

    // Denormal numbers are zeros, as operands and as results.
    static Vec flush(Vec x) {
        const Bits bits = (Bits)x;
        return (Vec)((bits & 0x7f800000) == 0 ? bits & 0x80000000 : bits);
    }

    // TDPBF16PS: a sum of the even terms and one of the odd ones, each by fused multiply-adds; then both.
    static Bits add_bfloat16(Bits sum, Bits numbers, const Bits* weights) {
        Vec even{}, odd{};
        for (long k = 0; k < TILE_WORDS; ++k) {
            const Bits number = numbers[k] - Bits{};
            even = flush(fused(flush((Vec)(number << 16)), flush((Vec)(weights[k] << 16)), even));
            odd = flush(fused(flush((Vec)(number & 0xffff0000)), flush((Vec)(weights[k] & 0xffff0000)), odd));
        }
        return (Bits)flush(flush((Vec)sum) + flush(even + odd));
    }

    // TDPBSUD: exact.
    static Bits add_int8(Bits sum, Bits numbers, const Bits* weights) {
        for (long k = 0; k < TILE_WORDS; ++k)
            for (long shift = 0; shift < 32; shift += 8) {
                const uint32_t number = static_cast<uint32_t>(static_cast<int8_t>(numbers[k] >> shift));
                sum += (weights[k] >> static_cast<uint32_t>(shift) & 0xff) * number;
            }
        return sum;
    }

    long height_ = 0;
    Tile all_[8] = {};
};
#endif

// ---- products ---------------------------------------------------------------------------------------------------

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
    static constexpr long at(long gates, long all, long word, long gate) {
        const long pair = gate / 2, wide = gates > 2 * pair + 1 ? 2 : 1;
        const long tile = word / TILE_WORDS * wide + gate % 2;
        return (pair * 2 * all + tile * TILE_WORDS + word % TILE_WORDS) * LANES;
    }
};

template <class Format>
class TileProduct {
public:
    static constexpr long DEPTH = TILE_WORDS;         // words of a row are padded to a multiple of it
    static constexpr long SPARE_ROWS = TILE_ROWS - 1; // rows of words that may be read behind the last
    static constexpr long STORED = 1;
    typedef TileProduct Ahead;
    typedef TileOrder Order;

    static constexpr long panels_at_once(long gates, long rows) {
        return by_vectors(rows) ? VectorProduct<Format>::panels_at_once(gates, rows) : 1;
    }

    // Two tiles, whose sums and states leave the second-level cache to the weights, unless these exceed it anyhow.
    static constexpr long task_rows(long weight_bytes) { return weight_bytes <= 1 << 20 ? 2 * TILE_ROWS : MOST_ROWS; }

    // As VectorProduct's. Rows are cut into tiles of equal height; what it makes more of them is dropped.
    template <long V>
    void product(long rows, long panels, long k, const Values<Format>& a, const uint32_t* panel, float* out,
                 long out_stride) {
        if constexpr (by_vectors(1))
            if (rows == 1)
                return VectorProduct<Format>::template row_product<V, Order>(panels, k, a, panel, out);
        const long tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, height = (rows + tiles - 1) / tiles;
        if (height != height_) tiles_.configure(height_ = height);
        const long depth = k / TILE_WORDS;
        const Operands all{rows, depth, a, panel,
                           reinterpret_cast<const float*>(panel + k * V * LANES), out, out_stride};
        Tiles::finish_writes();
        if (tiles == 1) return block<1, V>(all, 0, 0);
        for (long v = 0; v < V; v += 2)
            for (long tile = 0; tile < tiles; tile += 2) {
                const bool two = tile + 1 < tiles;
                if (v + 1 < V)
                    two ? block<2, 2>(all, tile, v) : block<1, 2>(all, tile, v);
                else
                    two ? block<2, 1>(all, tile, v) : block<1, 1>(all, tile, v);
            }
    }

private:
    static constexpr bool STARTS = Format::EXTRAS == 1;
    // A tile of a single row takes longer than vectors, whose sums of integers are the same.
    static constexpr bool by_vectors(long rows) { return HAS_DOTS_OF_BYTES && Format::GROUP == 4 && rows == 1; }

    struct Operands {
        long rows, depth;
        const Values<Format>& a;
        const uint32_t* panel;
        const float* extras;
        float* out;
        long out_stride;
    };

    // R tiles of rows by G gates, four sums at most. Chains of dots hide each other's latency.
    template <int R, int G>
    void block(const Operands& all, long tile, long gate) {
        static_assert(R * G <= 4, "sums are four tiles");
        constexpr long GROUP = Format::GROUP;
        auto extras_of = [&](long sum) { return all.extras + (gate + sum % G) * Format::EXTRAS * LANES; };
        for_each_number<R * G>([&](auto sum) {
            // Sums of float32 begin with the bias, in every row.
            if constexpr (STARTS)
                tiles_.template load<sum.value>(reinterpret_cast<const uint32_t*>(extras_of(sum.value)), 0);
            else
                tiles_.template zero<sum.value>();
        });
        constexpr long TILE = TILE_ROWS * LANES;
        const long height = height_, of_row = all.a.stride;
        const uint32_t* numbers = all.a.words + tile * height * of_row;
        const uint32_t* weights = all.panel + gate * all.depth * TILE;  // `gate` is the first of a pair
        for (long k = 0; k < all.depth; ++k, numbers += TILE_WORDS) {
            for_each_number<R>([&](auto r) {
                tiles_.template load<4 + r.value>(numbers + r.value * height * of_row, of_row);
            });
            for_each_number<G>([&](auto g) {
                constexpr int WEIGHTS = 6 + decltype(g)::value % 2;
                constexpr long FIRST = g.value / 2 * 2, WIDE = G > FIRST + 1 ? 2 : 1;
                const uint32_t* of_pair = weights + FIRST * all.depth * TILE + k * WIDE * TILE;
                tiles_.template load<WEIGHTS>(of_pair + g.value % 2 * TILE, LANES);
                for_each_number<R>([&](auto r) {
                    constexpr int SUM = decltype(r)::value * G + decltype(g)::value;
                    tiles_.template dot<GROUP, SUM, 4 + decltype(r)::value, WEIGHTS>();
                });
            });
        }
        const long rows = all.rows, out_stride = all.out_stride;
        const typename Format::Row* const of_rows = all.a.rows;
        for_each_number<R * G>([&](auto sum) {
            constexpr int SUM = decltype(sum)::value;
            const long first = (tile + SUM / G) * height, count = rows - first;
            float* out = all.out + first * out_stride + (gate + SUM % G) * LANES;
            if (STARTS && count >= height) return tiles_.template store<SUM>(reinterpret_cast<uint32_t*>(out), out_stride);
            alignas(64) uint32_t found[TILE_ROWS * TILE_WORDS];
            tiles_.template store<SUM>(found, TILE_WORDS);
            for (long r = 0; r < height && r < count; ++r, out += out_stride) {
                const auto of_row = (typename Format::Sum)load_bits(found + r * TILE_WORDS);
                if constexpr (STARTS)
                    store(out, of_row);
                else
                    store(out, Format::finish(of_row, of_rows[first + r], extras_of(SUM)));
            }
        });
    }

    Tiles tiles_;
    long height_ = 0;
};
