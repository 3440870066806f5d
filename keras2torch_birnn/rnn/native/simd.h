// Vectors and nonlinearities. Included once by every isa_*.cpp, inside that file's namespace and
// with that file's compiler flags; no standard header is used here, lest a function of it be
// compiled for AVX-512 and then shared with the files that must not use it.
//
// GCC and clang vector extensions: the same source gives AVX-512, AVX2, SSE2 and NEON.

typedef float Vec __attribute__((vector_size(K2T_LANES * 4)));
typedef int IntVec __attribute__((vector_size(K2T_LANES * 4)));
// The same, wherever it lies in memory.
typedef float LooseVec __attribute__((vector_size(K2T_LANES * 4), aligned(4), may_alias));

constexpr long LANES = K2T_LANES;

// Loops over a vector register's worth of work must not survive: an accumulator array that is
// indexed by a variable stays in memory.
#if defined(__clang__)
#define K2T_UNROLL _Pragma("clang loop unroll(full)")
#else
#define K2T_UNROLL _Pragma("GCC unroll 64")
#endif

static inline Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
static inline void store(float* to, Vec value) { *reinterpret_cast<LooseVec*>(to) = value; }
static inline Vec all(float value) { return value - Vec{}; }
static inline Vec smaller(Vec a, Vec b) { return b < a ? b : a; }  // keeps a NaN in a
static inline Vec larger(Vec a, Vec b) { return a < b ? b : a; }
static inline Vec clamp(Vec x, float low, float high) {
    return smaller(larger(x, all(low)), all(high));
}

// a b + c. With K2T_EXACT rounded once, everywhere; else as the compiler likes, which is faster where
// the processor has no such instruction.
#if defined(K2T_EXACT)
#include "fused.h"
#else
static inline Vec fused(Vec a, Vec b, Vec c) { return a * b + c; }
#endif

// 1 / x for x in [1, 2^126]. AVX-512 estimates 14 bits in a fraction of a division's time, and a step
// of Newton's method makes them 23: the error is one unit in the last place. Processors differ in
// the estimate, so with K2T_EXACT it is a division.
static inline Vec reciprocal(Vec x) {
#if K2T_LANES == 16 && !defined(K2T_EXACT)
    const Vec guess = __builtin_ia32_rcp14ps512_mask(x, Vec{}, static_cast<unsigned short>(-1));
    return guess + guess * (1.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

// e^x for x in [-87, 87], clamped outside. Cephes expf: x = n ln 2 + r, a polynomial of r, and n
// added to the exponent's bits. Error below 2 units in the last place.
static inline Vec exponential(Vec x) {
    const Vec bounded = clamp(x, -87.0f, 87.0f);
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
    const Vec shifted = fused(bounded, all(1.44269504088896341f), all(12582912.0f));
    const Vec n = shifted - 12582912.0f;
    const Vec r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), bounded));
    Vec p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = fused(p, r * r, r) + 1.0f;
    const Vec scaled = (Vec)((IntVec)p + ((IntVec)shifted << 23));
    return x == x ? scaled : x;
}

static inline Vec sigmoid(Vec x) { return reciprocal(1.0f + exponential(-x)); }

// Cephes tanhf: an odd polynomial near zero, else (1 - t) / (1 + t) with t = e^-2|x|. Error below
// 2e-7 relative.
static inline Vec hyperbolic_tangent(Vec x) {
    const Vec size = x < 0.0f ? -x : x;
    const Vec t = exponential(size * -2.0f);
    const Vec far = (1.0f - t) * reciprocal(1.0f + t);
    const Vec s = x * x;
    Vec p = all(-5.70498872745e-3f);
    p = fused(p, s, all(2.06390887954e-2f));
    p = fused(p, s, all(-5.37397155531e-2f));
    p = fused(p, s, all(1.33314422036e-1f));
    p = fused(p, s, all(-3.33332819422e-1f));
    const Vec near = fused(p * s, x, x);
    return size < 0.625f ? near : x < 0.0f ? -far : far;
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

static inline Vec activate(long kind, float parameter, Vec x) {
    switch (kind) {
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
        case K2T_HARD_TANH: return clamp(x, -1.0f, 1.0f);
        default: return x;
    }
}
