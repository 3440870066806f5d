// A fingerprint of weights, to notice changes. Inside an isa_*.cpp's namespace.
//
// Every lane is a chain of steps. A step is a bijection of the lane's state, so one changed number
// always changes the fingerprint. Every value enters its step twice: before the multiplication and,
// rotated, after it. With one entry a flipped sign could always be undone by a change of the number
// before it; with two, undoing it takes chosen changes of dozens of numbers. Other changes cancel by
// chance in one of 2^64 cases. The chains start at random numbers, drawn once per process, so that
// nobody can prepare such changes.
//
// With AVX-512 this is as fast as reading the weights (1.1 us for the 133 kB of an LSTM of 64 units
// and features). A multiply-and-fold hash of 64 x 64 -> 128 bits takes three times as long there, and
// no longer notices every single change.

typedef uint64_t Words __attribute__((vector_size(K2T_LANES * 4)));
typedef uint64_t LooseWords __attribute__((vector_size(K2T_LANES * 4), aligned(4), may_alias));

constexpr int64_t WORD_LANES = LANES / 2;
// Independent chains hide the latency of the multiplication.
constexpr int64_t CHAINS = 8;
constexpr uint64_t FACTOR = 0x9e3779b97f4a7c15;  // 2^64 divided by the golden ratio; odd

template <class Value>
static Value mix(Value sum, Value value) {
    const Value both = sum ^ value;
    return (((both << 29) | (both >> 35)) * FACTOR) ^ ((value << 17) | (value >> 47));
}

// Weights to read ahead, in floats, into the second-level cache: past the caches, fewer reads are under way at a
// time, and a model of 10 MB took four times as long on Intel. Few weights are in the caches already.
constexpr int64_t AHEAD = 1024, FEW_WEIGHTS = 1 << 16;

template <bool READS_AHEAD>
static void mix_block(Words* sums, const float* from) {
    K2T_UNROLL
    for (int64_t i = 0; READS_AHEAD && i < CHAINS * LANES; i += 16) __builtin_prefetch(from + AHEAD + i, 0, 2);
    K2T_UNROLL
    for (int64_t c = 0; c < CHAINS; ++c)
        sums[c] = mix<Words>(sums[c], *reinterpret_cast<const LooseWords*>(from + c * LANES));
}

// `start`: the random number from which all chains are seeded, each lane by a number of its own.
static uint64_t fingerprint(const K2tArray* arrays, int64_t count, uint64_t start) {
    Words sums[CHAINS];
    for (int64_t c = 0; c < CHAINS; ++c)
        for (int64_t lane = 0; lane < WORD_LANES; ++lane)
            sums[c][lane] = mix<uint64_t>(start, static_cast<uint64_t>(c * WORD_LANES + lane + 1) * FACTOR);
    uint64_t all = start;
    for (const K2tArray* array = arrays; array < arrays + count; ++array) {
        const int64_t size = array->data ? array->size : 0;
        int64_t i = 0;
        if (size < FEW_WEIGHTS)
            for (; i + CHAINS * LANES <= size; i += CHAINS * LANES) mix_block<false>(sums, array->data + i);
        for (; i + CHAINS * LANES <= size; i += CHAINS * LANES) mix_block<true>(sums, array->data + i);
        if (i < size) {
            float last[CHAINS * LANES] = {};  // padded with zeros
            for (int64_t j = 0; i + j < size; ++j) last[j] = array->data[i + j];
            mix_block<false>(sums, last);
        }
        all = mix<uint64_t>(all, static_cast<uint64_t>(size));
    }
    for (int64_t c = 1; c < CHAINS; ++c) sums[0] = mix<Words>(sums[0], sums[c]);
    for (int64_t lane = 0; lane < WORD_LANES; ++lane) all = mix<uint64_t>(all, sums[0][lane]);
    return all;
}
