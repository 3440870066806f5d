// A fingerprint of weights, to notice changes. Inside an isa_*.cpp's namespace.
//
// Every lane goes through a chain of steps, each one to one in what the lane was, so that a difference
// stays. What is read enters a step twice: before the multiplication and, rotated, after it. Entered
// once, the change of a sign could always be undone by a change of the number before; now it takes
// chosen changes of dozens of numbers. All others cancel out by chance alone, one of 2^64, and nobody
// can compute which, for the chains start at random numbers, others in every process.

typedef uint64_t Words __attribute__((vector_size(K2T_LANES * 4)));
typedef uint64_t LooseWords __attribute__((vector_size(K2T_LANES * 4), aligned(4), may_alias));

constexpr long WORD_LANES = LANES / 2;
// Chains side by side: a multiplication takes long, but one can begin at once after the other.
constexpr long CHAINS = 8;
constexpr uint64_t FACTOR = 0x9e3779b97f4a7c15;  // 2^64 divided by the golden ratio; odd

template <class Value>
static Value mixed(Value sum, Value read) {
    const Value both = sum ^ read;
    return (((both << 29) | (both >> 35)) * FACTOR) ^ ((read << 17) | (read >> 47));
}

static void mix_block(Words* sums, const float* from) {
    K2T_UNROLL
    for (long c = 0; c < CHAINS; ++c)
        sums[c] = mixed<Words>(sums[c], *reinterpret_cast<const LooseWords*>(from + c * LANES));
}

// `start`: a random number.
static uint64_t print(const K2tArray* arrays, long count, uint64_t start) {
    Words sums[CHAINS];
    uint64_t all = start;
    for (long c = 0; c < CHAINS; ++c)
        for (long lane = 0; lane < WORD_LANES; ++lane)
            sums[c][lane] = all = mixed<uint64_t>(all, mixed<uint64_t>(all, FACTOR));
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
