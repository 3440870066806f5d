// Vectors and nonlinearities. Included once for every instruction set, inside its namespace and
// with that file's compiler flags; no standard header is used here, lest a function of it be
// compiled for AVX-512 and then shared with the files that must not use it.
//
// GCC and clang vector extensions: the same source gives AVX-512, AVX2, SSE2 and NEON.

typedef float Vec __attribute__((vector_size(K2T_LANES * 4)));
typedef int IntVec __attribute__((vector_size(K2T_LANES * 4)));
// The same, wherever it lies in memory.
typedef float LooseVec __attribute__((vector_size(K2T_LANES * 4), aligned(4), may_alias));

constexpr int64_t LANES = K2T_LANES;
#if K2T_LANES == 16 || defined(__aarch64__)
constexpr int64_t REGISTERS = 32;
#else
constexpr int64_t REGISTERS = 16;
#endif

// Loops over a vector register's worth of work must not survive: an accumulator array that is
// indexed by a variable stays in memory.
#if defined(__clang__)
#define K2T_UNROLL _Pragma("clang loop unroll(full)")
#else
#define K2T_UNROLL _Pragma("GCC unroll 64")
#endif

#if defined(__aarch64__)  // GCC 14 cannot hand a LooseVec to a function there: an internal error
static inline Vec load(const float* from) {
    Vec value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}
#else
static inline Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
#endif
static inline void store(float* to, Vec value) { *reinterpret_cast<LooseVec*>(to) = value; }
static inline Vec all(float value) { return value - Vec{}; }

// The first `count` numbers of a vector; zeros for the others.
#if K2T_LANES == 16
// (The functions of <immintrin.h>, as compilers differ in the arguments of what these call.)
static inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
static inline Vec load_first(const float* from, int64_t count) {
    return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(first_lanes(count), from));
}
static inline void store_first(float* to, Vec value, int64_t count) {
    _mm512_mask_storeu_ps(to, first_lanes(count), reinterpret_cast<__m512>(value));
}
#else
static inline Vec load_first(const float* from, int64_t count) {
    if (count == LANES) return load(from);
    float x[LANES] = {};
    for (int64_t lane = 0; lane < count; ++lane) x[lane] = from[lane];
    return load(x);
}
static inline void store_first(float* to, Vec value, int64_t count) {
    if (count == LANES) return store(to, value);
    for (int64_t lane = 0; lane < count; ++lane) to[lane] = value[lane];
}
#endif
// Compilers without this move each number by itself.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#if K2T_LANES == 16
#define K2T_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define K2T_FRONT 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define K2T_BACK 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif K2T_LANES == 8
#define K2T_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define K2T_FRONT 0, 8, 1, 9, 2, 10, 3, 11
#define K2T_BACK 4, 12, 5, 13, 6, 14, 7, 15
#else
#define K2T_EVEN 0, 2, 4, 6
#define K2T_FRONT 0, 4, 1, 5
#define K2T_BACK 2, 6, 3, 7
#endif
#endif
#endif

// Every other number of a and b.
#if defined(K2T_EVEN)
static inline Vec even_lanes(Vec a, Vec b) {
    return __builtin_shufflevector(a, b, K2T_EVEN);
}
#else
static inline Vec even_lanes(Vec a, Vec b) {
    Vec found;
    for (int64_t lane = 0; lane < LANES / 2; ++lane) {
        found[lane] = a[2 * lane];
        found[lane + LANES / 2] = b[2 * lane];
    }
    return found;
}
#endif

// Turn rows into columns.
#if defined(K2T_FRONT)
static inline void transpose(Vec (&x)[LANES]) {
    // Each round writes the numbers of the first half of the rows and of the second alternately; after
    // as many rounds as LANES has bits, rows are columns.
    K2T_UNROLL
    for (int64_t round = 1; round < LANES; round *= 2) {
        Vec y[LANES];
        K2T_UNROLL
        for (int64_t i = 0; i < LANES / 2; ++i) {
            y[2 * i] = __builtin_shufflevector(x[i], x[i + LANES / 2], K2T_FRONT);
            y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + LANES / 2], K2T_BACK);
        }
        K2T_UNROLL
        for (int64_t i = 0; i < LANES; ++i) x[i] = y[i];
    }
}
#else
static inline void transpose(Vec (&x)[LANES]) {
    for (int64_t i = 0; i < LANES; ++i)
        for (int64_t j = 0; j < i; ++j) {
            const float kept = x[i][j];
            x[i][j] = x[j][i];
            x[j][i] = kept;
        }
}
#endif
// Both keep a NaN in a, as one instruction of x86 does, which GCC does not find by itself.
#if K2T_LANES == 16
static inline Vec smaller(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)b, (__m512)a); }
static inline Vec larger(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)b, (__m512)a); }
#elif K2T_LANES == 8
static inline Vec smaller(Vec a, Vec b) { return __builtin_ia32_minps256(b, a); }
static inline Vec larger(Vec a, Vec b) { return __builtin_ia32_maxps256(b, a); }
#elif defined(__x86_64__) && K2T_LANES == 4
static inline Vec smaller(Vec a, Vec b) { return __builtin_ia32_minps(b, a); }
static inline Vec larger(Vec a, Vec b) { return __builtin_ia32_maxps(b, a); }
#else
static inline Vec smaller(Vec a, Vec b) { return b < a ? b : a; }
static inline Vec larger(Vec a, Vec b) { return a < b ? b : a; }
#endif
static inline Vec clamp(Vec x, float low, float high) {
    return smaller(larger(x, all(low)), all(high));
}

static inline Vec fused(Vec a, Vec b, Vec c) { return a * b + c; }

// 1 / x for x in [1, 2^126]. AVX-512 estimates 14 bits in a fraction of a division's time, and a step
// of Newton's method makes them 23: the error is one unit in the last place.
#if K2T_LANES == 16
static inline Vec reciprocal(Vec x) {
    const Vec guess = __builtin_ia32_rcp14ps512_mask(x, Vec{}, static_cast<unsigned short>(-1));
    return guess + guess * (1.0f - x * guess);
}
#else
static inline Vec reciprocal(Vec x) {
    return 1.0f / x;
}
#endif

// a / b for |a| <= b in [1, 2^126], and so no more than 1; with the same estimate.
#if K2T_LANES == 16
static inline Vec quotient(Vec a, Vec b) {
    return smaller(a * reciprocal(b), all(1.0f));
}
#else
static inline Vec quotient(Vec a, Vec b) {
    return a / b;
}
#endif

// e^x = (1 + rest) power, for x in [-87, 87], clamped outside.
struct Exponential {
    Vec rest, power;
};

// Cephes expf: x = n ln 2 + r, the rest a polynomial of r, and 2^n made of n's bits. Error of 1 + rest
// below 2 units in the last place. A NaN is kept in the rest.
static inline Exponential split_exponential(Vec x) {
    const Vec bounded = clamp(x, -87.0f, 87.0f);
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
    const Vec shifted = fused(bounded, all(1.44269504088896341f), all(12582912.0f));
    const Vec n = shifted - 12582912.0f;
    const Vec r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), bounded));
    const Vec square = r * r;
    Vec p = fused(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
    p = fused(p, square, fused(r, all(8.3334519073e-3f), all(4.1665795894e-2f)));
    p = fused(p, square, fused(r, all(1.6666665459e-1f), all(5.0000001201e-1f)));
    return {fused(p, square, r), (Vec)(((IntVec)shifted << 23) + 0x3f800000)};
}

static inline Vec exponential(Vec x) {
    const Exponential e = split_exponential(x);
    return (1.0f + e.rest) * e.power;
}

// Zero below -87, so that a closed gate lets nothing pass: infinity times it is NaN.
static inline Vec sigmoid(Vec x) {
    const Exponential e = split_exponential(-x);
    const Vec y = reciprocal(fused(e.rest, e.power, 1.0f + e.power));
    return x < -87.0f ? Vec{} : y;
}

// m / (m + 2) with m = e^2x - 1, whose rest alone counts near zero. Error below 2.1e-7 relative.
static inline Vec hyperbolic_tangent(Vec x) {
    const Exponential e = split_exponential(x * 2.0f);
    const Vec m = fused(e.rest, e.power, e.power - 1.0f);
    return quotient(m, m + 2.0f);
}

static inline Vec elu(Vec x, float alpha) {
    // e^x - 1 by its series near zero, where the difference would lose every digit.
    Vec series = all(1.0f / 5040.0f);
    series = fused(series, x, all(1.0f / 720.0f));
    series = fused(series, x, all(1.0f / 120.0f));
    series = fused(series, x, all(1.0f / 24.0f));
    series = fused(series, x, all(1.0f / 6.0f));
    series = fused(series, x, all(0.5f));
    series = fused(series, x * x, x);
    const Vec negative = x > -0.5f ? series : exponential(x) - 1.0f;
    return x > 0.0f ? x : negative * alpha;
}

static inline Vec activate(int64_t kind, float parameter, Vec x) {
    switch (static_cast<K2tActivation>(kind)) {
        case K2T_LINEAR: return x;
        case K2T_TANH: return hyperbolic_tangent(x);
        case K2T_SIGMOID: return sigmoid(x);
        case K2T_HARD_SIGMOID_0_2: return clamp(fused(x, all(0.2f), all(0.5f)), 0.0f, 1.0f);
        case K2T_HARD_SIGMOID_1_6: return clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
        case K2T_RELU: return larger(x, Vec{});
        case K2T_RELU6: return clamp(x, 0.0f, 6.0f);
        case K2T_LEAKY_RELU: return x > 0.0f ? x : x * parameter;
        case K2T_ELU: return elu(x, parameter);
        case K2T_SELU: return elu(x, 1.67326324235437728f) * 1.05070098735548049f;
        case K2T_SOFTSIGN: return x / (1.0f + (x < 0.0f ? -x : x));
        case K2T_SILU: return x * sigmoid(x);
        case K2T_HARD_SILU: return x * (clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f));
    }
    __builtin_trap();
}
