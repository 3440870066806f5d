// Runs the native kernel through its binary interface, all cells, merges and instruction sets, several
// callers at once; built with sanitizers by test_sanitizers.py. Ends with 1 if one thread and
// many give other numbers.
#include <array>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "kernel.h"
#include "program.h"

namespace {

using Floats = std::vector<float>;

Floats random(size_t count) {
    static std::mt19937 generator(1);
    std::normal_distribution<float> normal(0, 0.1f);
    Floats values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

// Room that starts a cache line, as the kernel's packed weights must.
class Aligned {
public:
    explicit Aligned(int64_t floats) : data_(static_cast<size_t>(floats) + 16) {}
    float* get() {
        const uintptr_t at = reinterpret_cast<uintptr_t>(data_.data());
        return reinterpret_cast<float*>((at + 63) / 64 * 64);
    }

private:
    Floats data_;
};

struct Sizes {
    int64_t batch, time, features, units;
};

constexpr int64_t FLOAT32 = 4;  // bits of instruction sets above are of reduced precision

struct Layer {
    int64_t isa, kind, merge;
    Sizes n;
    K2tShape shape;
    int64_t gates, states;
    Floats x;
    std::vector<Floats> weights;  // four of each direction
    std::vector<std::array<K2tArray, 4>> sources;
    std::vector<Aligned> packed, packed_back;
    std::vector<int64_t> lengths;
    std::vector<Floats> start;  // h and c of each direction
    std::vector<Floats> input_masks, state_masks;  // of each direction, or none

    // masks: of dropout; none, one for all gates, or one for each.
    Layer(int64_t isa, int64_t kind, int64_t merge, bool masked, Sizes n, int64_t masks = 0)
        : isa(isa), kind(kind), merge(merge), n(n), shape{kind, n.features, n.units, masks > 1},
          gates(kind == K2T_LSTM ? 4 : kind == K2T_SIMPLE ? 1 : 3),
          states(kind == K2T_LSTM ? 2 : 1), x(random(n.batch * n.time * n.features)) {
        for (int d = 0; d < 2; ++d) {
            std::array<K2tArray, 4> given;
            const int64_t sizes[] = {n.features, n.units, 1, d ? 0 : 1};  // no second bias backwards
            for (int i = 0; i < 4; ++i) {
                weights.push_back(random(gates * n.units * sizes[i]));
                const Floats& one = weights.back();
                given[i] = {one.empty() ? nullptr : one.data(), static_cast<int64_t>(one.size())};
            }
            sources.push_back(given);
            packed.emplace_back(k2t_packed_size(isa, &shape));
            k2t_pack(isa, &shape, given[0].data, given[1].data, given[2].data, given[3].data,
                     packed[d].get());
            if (isa <= FLOAT32) {
                packed_back.emplace_back(k2t_gradient_packed_size(isa, &shape));
                k2t_gradient_pack(isa, &shape, given[0].data, given[1].data, packed_back[d].get());
            }
            start.push_back(random(n.batch * n.units));
            start.push_back(random(n.batch * n.units));
            if (!masks) continue;
            input_masks.push_back(random(masks * n.batch * n.features));
            state_masks.push_back(random(masks * n.batch * n.units));
        }
        for (int64_t b = 0; masked && b < n.batch; ++b)
            lengths.push_back(b == 2 ? 0 : (n.time - b * 7 % n.time));
    }

    // Outputs, final states, and the gradients of weights, input and start, one after the other.
    // Without merge each direction's outputs are also a gradient to go back with.
    // The run is repeated: after some calls in which threads gained nothing, one does the tasks of all.
    Floats run(int64_t threads, int times) {
        const int64_t width = merge ? n.units : 2 * n.units, rows = n.batch * n.time;
        Floats out(rows * width, -9.0f), final(2 * states * n.batch * n.units);
        const bool gradient = !merge && isa <= FLOAT32;
        const int64_t lanes = k2t_width(isa, n.units), parts = k2t_kept_parts(kind);
        std::vector<Floats> kept(2, Floats(rows * parts * lanes));
        K2tWeights weights{};
        weights.shape = shape;
        weights.directions = 2;
        K2tRun call{};
        call.weights = &weights;
        call.activation = K2T_TANH;
        call.recurrent_activation = kind == K2T_GRU_BEFORE ? K2T_HARD_SIGMOID_0_2 : K2T_SIGMOID;
        call.merge = merge;
        call.batch = n.batch;
        call.time = n.time;
        call.threads = threads;
        call.x = x.data();
        call.x_batch_stride = n.time * n.features;
        call.x_time_stride = n.features;
        call.lengths = lengths.empty() ? nullptr : lengths.data();
        call.out = out.data();
        call.final = final.data();
        for (int d = 0; d < 2; ++d) {
            weights.packed[d] = packed[d].get();
            call.h_0[d] = start[2 * d].data();
            call.c_0[d] = states == 2 ? start[2 * d + 1].data() : nullptr;
            call.kept[d] = gradient ? kept[d].data() : nullptr;
            if (!input_masks.empty()) {
                call.input_masks[d] = input_masks[d].data();
                call.state_masks[d] = state_masks[d].data();
            }
            weights.sources[d] = sources[d].data();
            if (k2t_fingerprint(isa, sources[d].data(), &weights.fingerprints[d])) std::abort();
        }
        ++weights.fingerprints[1];
        if (k2t_run(isa, &call) != K2T_STALE) std::abort();
        --weights.fingerprints[1];
        for (int turn = 0; turn < times; ++turn)
            if (k2t_run(isa, &call)) std::abort();
        Floats all = out;
        all.insert(all.end(), final.begin(), final.end());
        if (!gradient) return all;

        const int64_t sizes[] = {n.features, n.units, 1, 1};
        std::vector<Floats> d_weights;
        Floats d_start(final.size()), d_x(x.size());
        K2tGradient back{};
        back.d_out = call.out;
        back.d_out_batch_stride = n.time * width;
        back.d_out_time_stride = width;
        back.d_final = call.final;
        back.d_start = d_start.data();
        back.d_x = d_x.data();
        for (int i = 0; i < 8; ++i) d_weights.emplace_back(gates * n.units * sizes[i % 4]);
        for (int d = 0; d < 2; ++d) {
            weights.packed[d] = packed_back[d].get();
            for (int i = 0; i < 4; ++i) back.d_weights[d][i] = d_weights[4 * d + i].data();
        }
        if (k2t_gradient(isa, &call, &back)) std::abort();
        d_weights.push_back(d_start);
        d_weights.push_back(d_x);
        for (const Floats& one : d_weights) all.insert(all.end(), one.begin(), one.end());
        return all;
    }
};

// Words of a program: operands in the workspace are complements of offsets.
class Words {
public:
    int64_t room(int64_t floats) {
        floats_ += (floats + 15) / 16 * 16;
        return ~(floats_ - (floats + 15) / 16 * 16);
    }
    void add(int64_t operation, const std::vector<int64_t>& words) {
        all_.push_back(operation);
        all_.push_back(static_cast<int64_t>(words.size()));
        all_.insert(all_.end(), words.begin(), words.end());
    }
    // given: the addresses of inputs and outputs.
    int64_t run(int64_t isa, const std::vector<const void*>& given, int64_t threads = 2) const {
        std::vector<int64_t> call(sizeof(K2tProgram) / 8);
        const K2tProgram program{all_.data(), static_cast<int64_t>(all_.size()), floats_ + BEHIND, threads};
        std::copy_n(reinterpret_cast<const int64_t*>(&program), call.size(), call.begin());
        for (const void* one : given) call.push_back(reinterpret_cast<int64_t>(one));
        return k2t_run_program(isa, reinterpret_cast<const K2tProgram*>(call.data()));
    }

private:
    static constexpr int64_t BEHIND = 32;  // as layers/recording.py has
    std::vector<int64_t> all_;
    int64_t floats_ = 0;
};

int64_t word(const void* address) { return reinterpret_cast<int64_t>(address); }

// An operand in the place of an address.
template <class Float>
void put(Float*& pointer, int64_t operand) {
    pointer = reinterpret_cast<Float*>(operand);
}

// The words of a recurrent layer: its run, and what follows it in K2tRecurrentWords.
std::vector<int64_t> recurrent(const K2tRun& run, const std::vector<int64_t>& more) {
    const int64_t* const first = reinterpret_cast<const int64_t*>(&run);
    std::vector<int64_t> words(first, first + sizeof run / sizeof *first);
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

// Two layers in one call: outputs and final states as by calls of their own, with and without outputs.
bool stack_differs(Layer& first, Layer& second, int64_t threads) {
    Layer* const layers[] = {&first, &second};
    const Sizes& n = first.n;
    K2tWeights weights[2] = {};
    K2tRun calls[2] = {};
    Floats outputs[2], finals[2], ends[2];
    for (int i = 0; i < 2; ++i) {
        Layer& layer = *layers[i];
        const int64_t units = layer.n.units, width = layer.merge ? units : 2 * units;
        weights[i].shape = layer.shape;
        weights[i].directions = 2;
        outputs[i].resize(n.batch * n.time * width);
        finals[i].resize(2 * layer.states * n.batch * units);
        ends[i].resize(finals[i].size());
        K2tRun& call = calls[i];
        call.weights = &weights[i];
        call.activation = K2T_TANH;
        call.recurrent_activation = K2T_SIGMOID;
        call.merge = layer.merge;
        call.batch = n.batch;
        call.time = n.time;
        call.threads = threads;
        call.x = i ? outputs[0].data() : layer.x.data();
        call.x_time_stride = layer.n.features;
        call.x_batch_stride = n.time * layer.n.features;
        call.lengths = first.lengths.empty() ? nullptr : first.lengths.data();
        call.out = outputs[i].data();
        call.final = finals[i].data();
        for (int d = 0; d < 2; ++d) {
            weights[i].packed[d] = layer.packed[d].get();
            weights[i].sources[d] = layer.sources[d].data();
            if (k2t_fingerprint(layer.isa, layer.sources[d].data(), &weights[i].fingerprints[d])) std::abort();
            call.h_0[d] = layer.start[2 * d].data();
            call.c_0[d] = layer.states == 2 ? layer.start[2 * d + 1].data() : nullptr;
        }
        if (k2t_run(layer.isa, &call)) std::abort();
    }
    Floats out(outputs[1].size());
    bool differs = false;
    const auto run = [&](float* to) {
        Words words;
        const int64_t between = words.room(outputs[0].size());
        for (int i = 0; i < 2; ++i) {
            K2tRun call = calls[i];
            if (i) put(call.x, between);
            put(call.out, i ? word(to) : between);
            call.final = ends[i].data();
            words.add(K2T_RECURRENT, recurrent(call, {0, 0, 0, 0, 0, 0}));
        }
        return words.run(first.isa, {}, threads);
    };
    for (float* to : {out.data(), static_cast<float*>(nullptr)}) {
        if (run(to)) std::abort();
        differs |= out != outputs[1];
        for (int i = 0; i < 2; ++i) differs |= ends[i] != finals[i];
    }
    ++weights[1].fingerprints[0];
    if (run(out.data()) != K2T_STALE) std::abort();
    return differs;
}

int64_t word(double number) {
    int64_t found;
    std::copy_n(reinterpret_cast<const char*>(&number), sizeof found, reinterpret_cast<char*>(&found));
    return found;
}

int64_t word(const Floats& floats) { return word(floats.data()); }

// Rows of a table, a masked layer, a product, softmax; a convolution of the table's rows, the largest of what
// it gives, normalized. The sums of all rows of the softmax are as many as there are rows.
void run_operations(Layer& layer) {
    const int64_t batch = layer.n.batch, time = layer.n.time, features = layer.n.features;
    const int64_t units = layer.n.units, rows = batch * time, width = 2 * units, classes = 11;
    K2tWeights weights{};
    weights.shape = layer.shape;
    weights.directions = 2;
    for (int d = 0; d < 2; ++d) {
        weights.packed[d] = layer.packed[d].get();
        weights.sources[d] = layer.sources[d].data();
        if (k2t_fingerprint(layer.isa, layer.sources[d].data(), &weights.fingerprints[d])) std::abort();
    }
    Floats ids(rows), mask(rows);
    for (int64_t i = 0; i < rows; ++i) {
        ids[i] = static_cast<float>(i * 7 % 17) + 0.25f;
        mask[i] = i % 5 != 3;
    }
    const Floats table = layer.weights[0].size() >= size_t(17 * features) ? layer.weights[0] : random(17 * features);
    const Floats product = random(classes * width), bias = random(classes);
    const int64_t channels = 7, oh = time - 1, ow = features - 1, maxima = (ow + 1) / 2;
    const Floats filters = random(channels * 4);
    Floats sums(classes), normalized(batch * channels * maxima);
    Words words;
    const int64_t at = words.room(rows), x = words.room(rows * features), valid = words.room(rows);
    words.add(K2T_READ, {K2T_FLOAT32, rows, 1, at});
    words.add(K2T_READ, {K2T_FLOAT32, rows, 2, valid});
    words.add(K2T_TRUNCATE, {rows, at, at});
    words.add(K2T_LOOK_UP, {at, rows, x, word(table), features, 17, features});
    const int64_t out = words.room(rows * width), final = words.room(2 * layer.states * batch * units);
    K2tRun call{};
    call.weights = &weights;
    call.activation = K2T_TANH;
    call.recurrent_activation = K2T_SIGMOID;
    call.batch = batch;
    call.time = time;
    call.x_batch_stride = time * features;
    call.x_time_stride = features;
    for (int d = 0; d < 2; ++d) {
        call.h_0[d] = layer.start[2 * d].data();
        call.c_0[d] = layer.states == 2 ? layer.start[2 * d + 1].data() : nullptr;
    }
    put(call.x, x);
    put(call.lengths, words.room(2 * batch));
    put(call.out, out);
    put(call.final, final);
    const int64_t packed_x = words.room(rows * features), packed_out = words.room(rows * width);
    words.add(K2T_RECURRENT, recurrent(call, {valid, packed_x, packed_out, 0, 1, 1}));
    const int64_t scores = words.room(rows * classes), scratch = words.room((width + rows + 1) * 16);
    words.add(K2T_MULTIPLY, {1, rows, classes, width, scores, out, 0, width, 1, word(product), 0, 1, width,
                             word(bias), 1, scratch});
    words.add(K2T_MAP, {K2T_MAP_ACTIVATION + K2T_TANH, word(0.0), 1, rows * classes, scores, 1, scores, 1, scores, 1,
                        scores, 1});
    const int64_t shares = words.room(rows * classes);
    words.add(K2T_SOFTMAX, {scores, shares, rows, classes});
    words.add(K2T_REDUCE, {K2T_REDUCE_SUM, word(1.0), 3, shares, 1, classes, 1, 2, batch, time, time * classes,
                           classes});
    // Filters of 2 x 2. Then all rows in windows of three columns, every second one, with padding.
    const int64_t lines = words.room(batch * channels * oh * ow), most = words.room(batch * channels * maxima);
    const int64_t positions = ((oh - 1) * features + ow + 15) / 16 * 16;
    words.add(K2T_CONVOLVE, {batch, channels, 4, oh, ow, features, x, time * features, word(filters), word(bias),
                             lines, words.room(6 * positions), 0, 1, features, features + 1});
    words.add(K2T_POOL, {batch, channels, oh, ow, oh, 3, 1, maxima, 1, 2, 0, 1, 0, 0, lines, oh * ow,
                         batch * oh * ow, ow, 1, most, channels * maxima, maxima, 0, 1});
    words.add(K2T_NORMALIZE, {batch, channels * maxima, most, 4, 0, 0, word(1e-3)});
    const std::vector<const void*> given = {ids.data(), mask.data(), sums.data(), normalized.data()};
    if (words.run(layer.isa, given)) std::abort();
    ids[rows - 1] = 17;
    if (words.run(layer.isa, given) != K2T_BY_TORCH) std::abort();
    ids[rows - 1] = 0;
    ++weights.fingerprints[1];
    if (words.run(layer.isa, given) != 3) std::abort();
    float all = 0;
    for (float sum : sums) all += sum;
    if (!(std::fabs(all - static_cast<float>(rows)) < 1e-2f)) std::abort();
    for (float value : normalized)
        if (!(std::fabs(value) < 20)) std::abort();
}

// Of the largest value.
float difference(const Floats& a, const Floats& b) {
    float worst = 0, size = 1;
    for (float value : b) size = std::max(size, std::fabs(value));
    for (size_t i = 0; i < a.size(); ++i) {
        const float error = std::fabs(a[i] - b[i]) / size;
        if (!(error <= worst)) worst = error;  // a NaN counts
    }
    return worst;
}

}  // namespace

// Given: the sum of the instruction sets to run; all that there are without.
int main(int count, char** given) {
    const int64_t sets = k2t_instruction_sets() & (count > 1 ? std::atoll(given[1]) : -1);
    int wrong = 0;
    // By one thread, by two if calls are close, by a team, by a team for one row and for one direction
    // of it; sizes are primes.
    const Sizes sizes[] = {{1, 5, 3, 2},     {5, 13, 7, 19},  {1, 163, 31, 37},
                           {11, 31, 31, 37}, {1, 53, 5, 97}, {1, 7, 3, 389}};
    for (int64_t isa = 1; isa <= k2t_instruction_sets(); isa *= 2) {
        if (!(sets & isa)) continue;
        for (int64_t kind = 0; kind < K2T_KINDS; ++kind)
            for (int64_t merge = 0; merge < K2T_MERGES; ++merge)
                for (bool masked : {false, true})
                    for (const Sizes& n : sizes) {
                        if (n.time == 163 && (kind != K2T_LSTM || masked)) continue;
                        // How outputs are merged does not depend on how the work is divided.
                        if (merge != K2T_APART && merge != K2T_MUL && n.units != 19) continue;
                        if (n.units > 90 && merge != K2T_MUL) continue;
                        // Reduced precision splits no row; a batch in one merge shows all it has.
                        if (isa > FLOAT32 && (n.batch == 1 || merge != K2T_SUM)) continue;
                        if (n.units == 389 && kind != (masked ? K2T_LSTM : K2T_GRU_BEFORE)) continue;
                        const bool drops = isa <= FLOAT32 && merge == K2T_APART && n.units <= 37;
                        const int64_t masks = !drops ? 0 : masked ? 1 : kind == K2T_LSTM ? 4 : 3;
                        Layer layer(isa, kind, merge, masked, n, kind == K2T_SIMPLE ? masked : masks);
                        const Floats wanted = layer.run(1, 1);
                        float worst[2] = {};
                        std::vector<std::thread> callers;
                        for (float& mine : worst)
                            callers.emplace_back([&] {
                                for (int times : {1, n.units == 37 && masked == (n.batch > 1) ? 19 : 1})
                                    for (int64_t threads : {2, 4})
                                        mine = std::max(
                                            mine, difference(layer.run(threads, times), wanted));
                            });
                        for (std::thread& caller : callers) caller.join();
                        for (float mine : worst)
                            if (!(mine < 1e-5f)) {
                                std::printf("isa %d kind %d merge %d: %g\n", int(isa), int(kind),
                                            int(merge), mine);
                                wrong = 1;
                            }
                    }
    }
    for (int64_t isa : {1, 2, 4}) {
        if (!(sets & isa)) continue;
        for (const Sizes& n : {Sizes{5, 13, 7, 19}, Sizes{1, 53, 5, 97}, Sizes{1, 7, 3, 389}})
            for (int64_t merge : {K2T_APART, K2T_MUL})
                for (bool masked : {false, true}) {
                    Layer first(isa, K2T_LSTM, merge, masked, n);
                    const int64_t width = merge ? n.units : 2 * n.units;
                    Layer second(isa, K2T_GRU_AFTER, K2T_SUM, false, {n.batch, n.time, width, 23});
                    for (int64_t threads : {1, 2, 4})
                        if (stack_differs(first, second, threads)) {
                            std::printf("isa %d: another stack\n", int(isa));
                            wrong = 1;
                        }
                }
    }
    for (int64_t kind = 0; kind < K2T_KINDS; ++kind)
        for (const Sizes& n : {Sizes{5, 13, 7, 19}, Sizes{1, 53, 5, 97}}) {
            for (int64_t isa : {1, 2, 4}) {
                if (!(sets & isa)) continue;
                Layer layer(isa, kind, K2T_APART, false, n);
                run_operations(layer);
            }
        }
    std::puts(wrong ? "other numbers" : "the same numbers");
    return wrong;
}
