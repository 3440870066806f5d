// A fingerprint of weights, to notice changes. Inside an isa_*.cpp's namespace.
//
// Every lane goes through a chain of steps that each are one to one, both in what the lane was and in
// what is read: a change of one word always changes it, and changes of several words cancel out in one
// of 2^64 cases. The rotation lets no bit keep to itself, not even the sign.

typedef uint64_t Words __attribute__((vector_size(K2T_LANES * 4)));
typedef uint64_t LooseWords __attribute__((vector_size(K2T_LANES * 4), aligned(4), may_alias));

constexpr long WORD_LANES = LANES / 2;
// Chains side by side: a multiplication takes long, but one can begin at once after the other.
constexpr long CHAINS = 8;
constexpr uint64_t FACTOR = 0x9e3779b97f4a7c15;  // 2^64 divided by the golden ratio; odd

template <class Value>
static Value mixed(Value sum, Value read) {
    const Value both = sum ^ read;
    return ((both << 29) | (both >> 35)) * FACTOR;
}

static void mix_block(Words* sums, const float* from) {
    K2T_UNROLL
    for (long c = 0; c < CHAINS; ++c)
        sums[c] = mixed<Words>(sums[c], *reinterpret_cast<const LooseWords*>(from + c * LANES));
}

static uint64_t print(const K2tArray* arrays, long count) {
    Words sums[CHAINS];
    for (long c = 0; c < CHAINS; ++c)
        for (long lane = 0; lane < WORD_LANES; ++lane)
            sums[c][lane] = static_cast<uint64_t>(c * WORD_LANES + lane + 1) * FACTOR;
    uint64_t all = 0;
    for (const K2tArray* array = arrays; array < arrays + count; ++array) {
        const long size = array->data ? static_cast<long>(array->size) : 0;
        long i = 0;
        for (; i + CHAINS * LANES <= size; i += CHAINS * LANES) mix_block(sums, array->data + i);
        if (i < size) {
            float rest[CHAINS * LANES] = {};
            for (long j = 0; i + j < size; ++j) rest[j] = array->data[i + j];
            mix_block(sums, rest);
        }
        all = mixed<uint64_t>(all, static_cast<uint64_t>(size));
    }
    for (long c = 0; c < CHAINS; ++c)
        for (long lane = 0; lane < WORD_LANES; ++lane) all = mixed<uint64_t>(all, sums[c][lane]);
    return all;
}
