// The nonlinearities of reduced precision, as ratios: a cell multiplies them before it divides, once for a state
// where five functions of an LSTM would divide five times, which takes longer than all else of a unit. Inside an
// instruction set's namespace, after cells.h.

// Compilers leave long functions out of loops, whose constants are then read again for every vector.
#define K2T_INLINE __attribute__((always_inline))

struct Ratio {
    Vec numerator, denominator;
};

// No denominator exceeds 2^42 by much: a product of three is below float32's largest number, and so is one of two
// and a cell's state below 2^43.
constexpr float MOST_EXPONENT = 42;

// 2^(scale x) = (1 + rest) power. Of float32's 24 bits some 16 are right, near zero those of the rest: eight more
// than the products keep. A NaN is kept in the rest.
static inline Exponential split_power(Vec x, float scale) {
    const float limit = MOST_EXPONENT / (scale < 0 ? -scale : scale);
    const Vec bounded = clamp(x, -limit, limit);
    const Vec shifted = fused(bounded, all(scale), all(12582912.0f));  // as in split_exponential
    const Vec r = fused(bounded, all(scale), 12582912.0f - shifted);
    Vec p = fused(r, all(9.61811002e-3f), all(5.58372885e-2f));
    p = fused(p, r, all(2.40232527e-1f));
    p = fused(p, r, all(6.93136871e-1f));
    return {p * r, (Vec)(((IntVec)shifted << 23) + 0x3f800000)};
}

K2T_INLINE static inline Ratio sigmoid_ratio(Vec x) {
    const Exponential e = split_power(x, -1.44269504f);
    return {all(1.0f), fused(e.rest, e.power, 1.0f + e.power)};
}

K2T_INLINE static inline Ratio tanh_ratio(Vec x) {
    const Exponential e = split_power(x, 2.88539008f);
    const Vec m = fused(e.rest, e.power, e.power - 1.0f);
    return {m, m + 2.0f};
}

static inline Ratio activate_ratio(long kind, float parameter, Vec x) {
    switch (kind) {
        case K2T_TANH: return tanh_ratio(x);
        case K2T_SIGMOID: return sigmoid_ratio(x);
        default: return {activate(kind, parameter, x), all(1.0f)};
    }
}

// A cell's two, and where a gate's ratio is kept until another value is known.
struct StandardRatios {
    template <class Call>
    explicit StandardRatios(const Call&) {}
    Ratio gate(Vec x) const { return sigmoid_ratio(x); }
    Ratio act(Vec x) const { return tanh_ratio(x); }
    static void keep(const Ratio& gate, float*, float* to) { store(to, gate.denominator); }
    static Ratio kept(const float*, const float* from) { return {all(1.0f), load(from)}; }
};

struct ConfiguredRatios : Configured {
    using Configured::Configured;
    Ratio gate(Vec x) const { return activate_ratio(gate_kind, gate_parameter, x); }
    Ratio act(Vec x) const { return activate_ratio(act_kind, act_parameter, x); }
    static void keep(const Ratio& gate, float* above, float* below) {
        store(above, gate.numerator);
        store(below, gate.denominator);
    }
    static Ratio kept(const float* above, const float* below) { return {load(above), load(below)}; }
};
