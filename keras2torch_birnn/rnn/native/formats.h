// The two formats of reduced precision: how numbers become words of 32 bits, and a word's share of a
// sum. Inside an instruction set's namespace.
//
// A word holds GROUP consecutive numbers of a row. A vector of weights has a word for each of LANES
// units; the word of values is the same for all of them. Everything here gives the same bits on every
// processor: sums of integers are exact, and those of bfloat16 are added in the order of vdpbf16ps; by
// AMX (tiles.h) in that of its instruction.

typedef uint32_t Bits __attribute__((vector_size(K2T_LANES * 4)));
typedef uint32_t LooseBits __attribute__((vector_size(K2T_LANES * 4), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(K2T_LANES * 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(K2T_LANES * 2), aligned(4), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(K2T_LANES)));
typedef uint8_t LooseBytes __attribute__((vector_size(K2T_LANES), aligned(4), may_alias));

static inline Bits load_bits(const uint32_t* from) { return *reinterpret_cast<const LooseBits*>(from); }

// Of all lanes. Sums of floats: in any order.
#if K2T_LANES == 16 && defined(__AVX512F__)
static inline float sum_lanes(Vec x) { return _mm512_reduce_add_ps((__m512)x); }
static inline uint32_t sum_lanes(Bits x) { return static_cast<uint32_t>(_mm512_reduce_add_epi32((__m512i)x)); }
static inline float largest_lane(Vec x) { return _mm512_reduce_max_ps((__m512)x); }
#else
template <class Value>
static inline auto sum_lanes(Value x) {
    auto sum = x[0];
    for (long lane = 1; lane < LANES; ++lane) sum += x[lane];
    return sum;
}
static inline float largest_lane(Vec x) {
    float largest = x[0];
    for (long lane = 1; lane < LANES; ++lane) largest = x[lane] > largest ? x[lane] : largest;
    return largest;
}
#endif

// `count` numbers, then zeros.
static inline Vec load_part(const float* from, long count) {
    if (count >= LANES) return load(from);
    Vec values{};
    for (long lane = 0; lane < count; ++lane) values[lane] = from[lane];
    return values;
}

// Rounded to the nearest, ties to even: 8 bits of significand. Numbers below 2^-54 count as zero. So no
// product and no sum is denormal, which vdpbf16ps would take for zero.
struct BFloat16 {
    static constexpr long GROUP = 2, EXTRAS = 1;  // extra vectors of a panel and gate: the bias
    static constexpr long PARTS = 1;              // words of values for each word of weights
    typedef Vec Sum;
    struct Row {};
    static constexpr uint32_t SMALLEST = (127 - 54) << 23, SIGN = 1u << 31, UPPER = 0xffff0000;

    static Row measure(const float*, long) { return {}; }

    // The numbers in the upper halves of words.
    static Bits round(Vec values) {
        const Bits bits = (Bits)values;
        const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
        const Bits kept = (IntVec)(rounded & ~SIGN) < static_cast<int>(SMALLEST) ? Bits{} : rounded;
        return values == values ? kept : bits | 0x400000;
    }
    // Write the words of LANES numbers. The result is added up for `finish_row`.
    static Bits convert(Vec values, const Row&, uint32_t* to, bool) {
#if defined(__AVX512BF16__) && K2T_LANES == 16
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh((__m512)values);
        const __m256i size = _mm256_and_si256(rounded, _mm256_set1_epi16(0x7fff));
        const __mmask16 kept = _mm256_cmpge_epu16_mask(size, _mm256_set1_epi16(SMALLEST >> 16));
        _mm256_storeu_si256((__m256i*)to, _mm256_maskz_mov_epi16(kept, rounded));
#else
        *reinterpret_cast<LooseHalves*>(to) = __builtin_convertvector(round(values) >> 16, Halves);
#endif
        return Bits{};
    }
    static void finish_row(Row&, Bits) {}
    static void store_extras(const Row&, float bias, float* to) { *to = bias; }

#if defined(__AVX512BF16__) && K2T_LANES == 16
    static Sum dot(Sum sum, Bits weights, Bits values) {
        return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)values);
    }
#endif
    static Vec finish(Sum sum, const Row&, const float* extras) { return sum + load(extras); }
};

// The same numbers, widened to float32 where a product needs them: values as they are rounded, the weights
// each time, in registers. A sum has the bits of vdpbf16ps, which adds the product of the upper halves first;
// each product is exact in float32.
struct WideBFloat16 : BFloat16 {
    static constexpr long PARTS = 2;

    static Bits convert(Vec values, const Row& row, uint32_t* to, bool weights) {
        if (weights) return BFloat16::convert(values, row, to, true);
        // The second of a pair first.
        typedef uint64_t Pairs __attribute__((vector_size(K2T_LANES * 4)));
        const Pairs pairs = (Pairs)(round(values) & UPPER);
        *reinterpret_cast<LooseBits*>(to) = (Bits)(pairs << 32 | pairs >> 32);
        return Bits{};
    }
    static Bits part(Bits words, long part) { return part ? words << 16 : words & UPPER; }
    static Sum dot(Sum sum, Bits weights, Bits values) {
#if defined(__FMA__) || defined(__aarch64__)
        return fused((Vec)weights, (Vec)values, sum);
#else
        return sum + (Vec)weights * (Vec)values;
#endif
    }
};

// Symmetric: q = x / scale, scale = the largest |x| / 127; one scale for each output channel of the
// weights and each row of the values. Weights are stored as q + 128, because one factor of the
// processor's product has no sign; 128 times the sum of the row's q is taken off at the end.
struct Int8 {
    static constexpr long GROUP = 4, EXTRAS = 2;  // the bias, then the scale
    static constexpr long PARTS = 1;
    typedef Bits Sum;
    struct Row {
        float scale, inverse;
        uint32_t offset;
    };
    static constexpr float SMALLEST = 1e-30f;  // a row of smaller numbers counts as zeros

    // A number that is not finite makes the scale NaN, and so all that the row gives.
    static Row measure(const float* from, long count) {
        Vec most{}, broken{};
        for (long i = 0; i < count; i += LANES) {
            const Vec x = load_part(from + i, count - i);
            most = larger(most, x < 0.0f ? -x : x);
            broken += x - x;
        }
        const float sum = sum_lanes(broken), largest = largest_lane(most);
        if (sum != sum) return {sum, 0, 0};
        return largest < SMALLEST ? Row{0, 0, 0} : Row{largest / 127.0f, 127.0f / largest, 0};
    }

    // Adding 1.5 * 2^23 rounds to an integer, ties to even, which then stands in the lowest bits.
    static Bits round(Vec values, const Row& row) {
        return (Bits)(values * row.inverse + 12582912.0f) - 0x4b400000u;
    }
    static Bits convert(Vec values, const Row& row, uint32_t* to, bool weights) {
        const Bits q = round(values, row);
        const Bits stored = weights ? q + 128 : q;
        *reinterpret_cast<LooseBytes*>(to) = __builtin_convertvector(stored, Bytes);
        return q;
    }
    static void finish_row(Row& row, Bits sums) {
        row.offset += 128 * sum_lanes(sums);
    }
    static void store_extras(const Row& row, float bias, float* to) {
        to[0] = bias;
        to[LANES] = row.scale;
    }

#if defined(__AVX512VNNI__) && K2T_LANES == 16
    static Sum dot(Sum sum, Bits weights, Bits values) {
        return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)values);
    }
#elif defined(__AVXVNNI__) && K2T_LANES == 8
    static Sum dot(Sum sum, Bits weights, Bits values) {
        return (Sum)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, (__m256i)values);
    }
#endif
    static Vec finish(Sum sum, const Row& row, const float* extras) {
        const Vec whole_number = __builtin_convertvector((IntVec)(sum - row.offset), Vec);
        return fused(whole_number * row.scale, load(extras + LANES), load(extras));
    }
};

// The same numbers for processors that multiply integers of 16 bits only: values are stored widened, weights are
// widened in registers. Of a word's four numbers, the first and third come before the second and fourth.
struct WideInt8 : Int8 {
    static constexpr long PARTS = 2;
    typedef uint64_t Fours __attribute__((vector_size(K2T_LANES * 2)));
    typedef uint64_t LooseFours __attribute__((vector_size(K2T_LANES * 2), aligned(4), may_alias));

    static Bits convert(Vec values, const Row& row, uint32_t* to, bool weights) {
        if (weights) return Int8::convert(values, row, to, true);
        const Bits q = round(values, row);
        const Fours fours = (Fours)__builtin_convertvector(q, Halves);
        *reinterpret_cast<LooseFours*>(to) = (fours & 0xffff00000000ffff) | (fours << 16 & 0xffff00000000) |
                                             (fours >> 16 & 0xffff0000);
        return q;
    }
    static Bits part(Bits words, long part) { return (part ? words >> 8 : words) & 0x00ff00ff; }
    static Sum dot(Sum sum, Bits weights, Bits values) {
#if defined(__x86_64__) && K2T_LANES < 16
#if K2T_LANES == 8
        sum += (Bits)_mm256_madd_epi16((__m256i)weights, (__m256i)values);
#else
        sum += (Bits)_mm_madd_epi16((__m128i)weights, (__m128i)values);
#endif
        // Without this, compilers add the products of several words first, for which registers are too few.
        __asm__("" : "+x"(sum));
        return sum;
#else
        typedef int16_t Shorts __attribute__((vector_size(K2T_LANES * 4)));
        for (long i = 0; i < 2 * LANES; ++i)
            sum[i / 2] += static_cast<uint32_t>(((Shorts)weights)[i] * ((Shorts)values)[i]);
        return sum;
#endif
    }
};

// Convert `count` numbers, zeros after them, a vector at a time: part(i, numbers, row) writes the words of those from
// the i-th on and returns what convert does.
template <class Format, class Part>
static typename Format::Row convert_row(const float* from, long count, Part part) {
    typename Format::Row row = Format::measure(from, count);
    Bits sums{};
    for (long i = 0; i < count; i += LANES) sums += part(i, load_part(from + i, count - i), row);
    Format::finish_row(row, sums);
    return row;
}

// Rows of values in words.
template <class Format>
struct Values {
    uint32_t* words;
    long stride;
    typename Format::Row* rows;

    void convert(long r, const float* from, long count) const {
        uint32_t* const to = words + r * stride;
        rows[r] = convert_row<Format>(from, count, [&](long i, Vec numbers, const typename Format::Row& row) {
            return Format::convert(numbers, row, to + i / Format::GROUP * Format::PARTS, false);
        });
    }
};
