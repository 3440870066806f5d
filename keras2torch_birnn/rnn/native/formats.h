// The two formats of reduced precision: how numbers become words of 32 bits, and a word's share of a sum. Inside
// an instruction set's namespace.
//
// A word holds GROUP consecutive numbers of a row. A vector of weights has a word for each of LANES units; the
// word of values is the same for all of them. Each unit of a gate has EXTRAS more vectors, of which the first is
// what its sum starts with.

typedef uint32_t Bits __attribute__((vector_size(K2T_LANES * 4)));
typedef uint32_t LooseBits __attribute__((vector_size(K2T_LANES * 4), aligned(4), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(K2T_LANES)));
typedef uint8_t LooseBytes __attribute__((vector_size(K2T_LANES), aligned(4), may_alias));

static inline Bits load_bits(const uint32_t* from) { return *reinterpret_cast<const LooseBits*>(from); }

// The float of these bits, and the other way round.
template <class To, class From>
static inline To bits_as(From value) {
    To found;
    __builtin_memcpy(&found, &value, sizeof found);
    return found;
}

#if K2T_LANES == 16
static inline int largest_lane(IntVec x) {
    return _mm512_reduce_max_epi32((__m512i)x);
}
#else
static inline int largest_lane(IntVec x) {
    int largest = x[0];
    for (int64_t lane = 1; lane < LANES; ++lane) largest = x[lane] > largest ? x[lane] : largest;
    return largest;
}
#endif

#if defined(__AVX512BF16__)
// Numbers are rounded to 8 bits of significand, to the nearest, ties to even; sums are float32.
struct BFloat16 {
    static constexpr int64_t GROUP = 2, EXTRAS = 1;
    typedef Vec Sum;

    static float measure(const float*, int64_t) { return 1; }

    static uint32_t weight(float x, float) {
        const uint32_t bits = bits_as<uint32_t>(x);
        return (x == x ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000) >> 16;
    }
    static void convert(Vec values, float, uint32_t* to) {
        _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)values));
    }
    static void store_extras(float bias, float, uint32_t, float* to) { *to = bias; }

    static Sum dot(Sum sum, Bits weights, Bits values) {
        return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)values);
    }
    static Vec finish(Sum sum, float, const float*) { return sum; }
};
#endif

// q = x / scale, scale = the largest |x| / 127: one scale for each output channel of the weights, and one for
// each row of the values, which are stored as q + 128, because one factor of the processor's product has no sign.
// So a sum, which is exact, starts with -128 times the channel's sum of q.
struct Int8 {
    static constexpr int64_t GROUP = 4, EXTRAS = 3;  // then the scale, and the bias
    typedef Bits Sum;
    static constexpr float SMALLEST = 1e-30f;     // a row of smaller numbers counts as zeros

    // The scale; NaN where a number is not finite, and so is all that the row gives. The bits of floats without
    // their sign grow as these do, and then come infinity and NaN.
    static float measure(const float* from, int64_t count) {
        IntVec most{};
        for (int64_t i = 0; i < count; i += LANES) {
            const IntVec bits = (IntVec)load_first(from + i, count - i < LANES ? count - i : LANES) & 0x7fffffff;
            most = bits > most ? bits : most;
        }
        const float largest = bits_as<float>(largest_lane(most));
        return !(largest <= 3.4028235e38f) ? largest - largest : largest < SMALLEST ? 0 : largest / 127.0f;
    }
    static float inverse(float scale) { return scale > 0 ? 1.0f / scale : 0; }

    // Adding 1.5 * 2^23 rounds to an integer, ties to even, which then stands in the lowest bits.
    static uint32_t weight(float x, float scale) {
        return (bits_as<uint32_t>(x * inverse(scale) + 12582912.0f) - 0x4b400000u) & 0xff;
    }
    static void convert(Vec values, float scale, uint32_t* to) {
        const Bits stored = (Bits)(values * inverse(scale) + 12582912.0f) - (0x4b400000u - 128);
        *reinterpret_cast<LooseBytes*>(to) = __builtin_convertvector(stored, Bytes);
    }
    static void store_extras(float bias, float scale, uint32_t sum, float* to) {
        to[0] = bits_as<float>(0u - 128 * sum);
        to[LANES] = scale;
        to[2 * LANES] = bias;
    }

#if defined(__AVX512VNNI__)
    static Sum dot(Sum sum, Bits weights, Bits values) {
        return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)values, (__m512i)weights);
    }
#elif defined(__AVXVNNI__)
    static Sum dot(Sum sum, Bits weights, Bits values) {
        return (Sum)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)values, (__m256i)weights);
    }
#endif
    static Vec finish(Sum sum, float scale, const float* extras) {
        const Vec whole_number = __builtin_convertvector((IntVec)sum, Vec);
        return whole_number * scale * load(extras + LANES) + load(extras + 2 * LANES);
    }
};

// Rows of values in words, which a product reads.
template <class Format>
struct Values {
    uint32_t* words;
    int64_t stride;  // between rows
    int64_t count;   // words of a row, with zeros behind its numbers
    float* scales;

    void convert(int64_t rows, const float* from, int64_t from_stride, int64_t k) const {
        for (int64_t r = 0; r < rows; ++r, from += from_stride) {
            const float scale = scales[r] = Format::measure(from, k);
            for (int64_t i = 0; i < count * Format::GROUP; i += LANES) {
                const int64_t left = k - i < 0 ? 0 : k - i < LANES ? k - i : LANES;
                Format::convert(load_first(from + i, left), scale, words + r * stride + i / Format::GROUP);
            }
        }
    }
};
