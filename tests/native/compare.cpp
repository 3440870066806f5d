// Compares the native kernel with a plain loop in double: all cells, one and two directions, all merges,
// with and without lengths, all instruction sets and precisions of the processor. Ends with 1 if a number
// is wrong. Run by test_kernel_program.py, and for other systems by tools/check_platforms.sh.
//
//     compare [FILE [WITHOUT]]     FILE: for all that the kernel computes. WITHOUT: bits of instruction sets.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernel.h"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// Of [-0.5, 0.5), the same by every library of C++.
Floats random(int64_t count) {
    static std::mt19937 generator(7);
    Floats values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(generator() >> 8) / (1 << 24) - 0.5f;
    return values;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Direction {
    Floats weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0;
};

struct Layer {
    int64_t kind, gates, batch, time, features, units;
    Floats x;
    std::vector<int64_t> lengths;
    std::vector<Direction> directions;
};

// Row g * units + u of a weight times a vector.
double product(const Floats& weight, int64_t row, const double* vector, int64_t size) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += double(weight[size_t(row * size + i)]) * vector[i];
    return sum;
}

// One step in torch's equations; the gates stand one after the other.
void step(const Layer& n, const Direction& w, const double* x, Doubles& h, Doubles& c) {
    const int64_t units = n.units;
    const Doubles before = h;
    auto input = [&](int64_t g, int64_t u) {
        const int64_t row = g * units + u;
        return product(w.weight_ih, row, x, n.features) + w.bias_ih[size_t(row)];
    };
    auto recurrent = [&](int64_t g, int64_t u, const Doubles& from) {
        const int64_t row = g * units + u;
        return product(w.weight_hh, row, from.data(), units) + w.bias_hh[size_t(row)];
    };
    auto both = [&](int64_t g, int64_t u) { return input(g, u) + recurrent(g, u, before); };
    Doubles reset = before;
    if (n.kind == K2T_GRU_BEFORE)
        for (int64_t u = 0; u < units; ++u) reset[size_t(u)] *= sigmoid(both(0, u));
    for (int64_t u = 0; u < units; ++u) {
        double& now = h[size_t(u)];
        if (n.kind == K2T_LSTM) {
            double& cell = c[size_t(u)];
            cell = sigmoid(both(1, u)) * cell + sigmoid(both(0, u)) * std::tanh(both(2, u));
            now = sigmoid(both(3, u)) * std::tanh(cell);
        } else if (n.kind == K2T_SIMPLE) {
            now = std::tanh(both(0, u));
        } else {
            const double z = sigmoid(both(1, u));
            const double candidate = n.kind == K2T_GRU_BEFORE
                                         ? input(2, u) + recurrent(2, u, reset)
                                         : input(2, u) + sigmoid(both(0, u)) * recurrent(2, u, before);
            now = (1 - z) * std::tanh(candidate) + z * before[size_t(u)];
        }
    }
}

// Outputs as the kernel writes them, then the final states.
Doubles expect(const Layer& n, int64_t merge) {
    const int64_t count = int64_t(n.directions.size()), states = n.kind == K2T_LSTM ? 2 : 1;
    const int64_t width = merge ? n.units : count * n.units;
    Doubles apart(size_t(n.batch * n.time * count * n.units)), out;
    Doubles final(size_t(count * states * n.batch * n.units));
    for (int64_t d = 0; d < count; ++d)
        for (int64_t b = 0; b < n.batch; ++b) {
            const Direction& w = n.directions[size_t(d)];
            Doubles h(w.h_0.begin() + b * n.units, w.h_0.begin() + (b + 1) * n.units);
            Doubles c(w.c_0.begin() + b * n.units, w.c_0.begin() + (b + 1) * n.units);
            const int64_t length = n.lengths.empty() ? n.time : n.lengths[size_t(b)];
            for (int64_t i = 0; i < length; ++i) {
                const int64_t t = d ? length - 1 - i : i;
                const float* at = &n.x[size_t((b * n.time + t) * n.features)];
                const Doubles x(at, at + n.features);
                step(n, w, x.data(), h, c);
                std::copy(h.begin(), h.end(),
                          apart.begin() + ((b * n.time + t) * count + d) * n.units);
            }
            for (int64_t s = 0; s < states; ++s)
                std::copy_n((s ? c : h).begin(), n.units,
                            final.begin() + ((d * states + s) * n.batch + b) * n.units);
        }
    for (int64_t row = 0; row < n.batch * n.time; ++row)
        for (int64_t u = 0; u < width; ++u) {
            const double* first = &apart[size_t(row * count * n.units)];
            const double a = first[u], b = merge ? first[n.units + u] : 0;
            switch (static_cast<K2tMerge>(merge)) {
                case K2T_APART: out.push_back(a); break;
                case K2T_SUM: out.push_back(a + b); break;
                case K2T_MUL: out.push_back(a * b); break;
                case K2T_AVE: out.push_back((a + b) / 2); break;
            }
        }
    out.insert(out.end(), final.begin(), final.end());
    return out;
}

float* aligned(Floats& room) {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(room.data()) + 63) / 64 * 64);
}

Floats compute(int64_t isa, const Layer& n, int64_t merge, int64_t threads) {
    const int64_t count = int64_t(n.directions.size()), states = n.kind == K2T_LSTM ? 2 : 1;
    const K2tShape shape{n.kind, n.features, n.units, 0};
    const size_t size = size_t(n.batch * n.time * (merge ? n.units : count * n.units));
    Floats out(size, -9.0f), final(size_t(count * states * n.batch * n.units), -9.0f);
    std::vector<Floats> packed;
    K2tWeights weights{};
    weights.shape = shape;
    weights.directions = count;
    K2tRun run{};
    run.weights = &weights;
    run.activation = K2T_TANH;
    run.recurrent_activation = K2T_SIGMOID;
    run.merge = merge;
    run.batch = n.batch;
    run.time = n.time;
    run.threads = threads;
    run.x = n.x.data();
    run.x_batch_stride = n.time * n.features;
    run.x_time_stride = n.features;
    run.lengths = n.lengths.empty() ? nullptr : n.lengths.data();
    run.out = out.data();
    run.final = final.data();
    for (int64_t d = 0; d < count; ++d) {
        const Direction& w = n.directions[size_t(d)];
        packed.emplace_back(size_t(k2t_packed_size(isa, &shape)) + 16);
        k2t_pack(isa, &shape, w.weight_ih.data(), w.weight_hh.data(), w.bias_ih.data(),
                 w.bias_hh.data(), aligned(packed.back()));
        weights.packed[d] = aligned(packed.back());
        run.h_0[d] = w.h_0.data();
        run.c_0[d] = states == 2 ? w.c_0.data() : nullptr;
    }
    if (k2t_run(isa, &run)) std::abort();
    out.insert(out.end(), final.begin(), final.end());
    return out;
}

Layer make(int64_t kind, int64_t directions, bool masked, const std::array<int64_t, 4>& sizes) {
    const int64_t gates = kind == K2T_LSTM ? 4 : kind == K2T_SIMPLE ? 1 : 3;
    const auto [batch, time, features, units] = sizes;
    Layer n{kind, gates, batch, time, features, units, random(batch * time * features), {}, {}};
    for (int64_t b = 0; masked && b < batch; ++b)
        n.lengths.push_back(b == 2 ? 0 : time - b * 5 % time);
    const int64_t rows = gates * units;
    for (int64_t d = 0; d < directions; ++d)
        n.directions.push_back({random(rows * features), random(rows * units), random(rows),
                                random(rows), random(batch * units), random(batch * units)});
    return n;
}

}  // namespace

int main(int argument_count, char** arguments) {
    int wrong = 0, count = 0;
    double worst = 0;
    std::FILE* const file = argument_count > 1 ? std::fopen(arguments[1], "wb") : nullptr;
    const int64_t sets = k2t_instruction_sets() & ~(argument_count > 2 ? std::atoll(arguments[2]) : 0);
    constexpr int64_t FLOAT32 = 1 << K2T_FLOAT32_PLAIN | 1 << K2T_FLOAT32_AVX2 | 1 << K2T_FLOAT32_AVX512;
    const std::array<int64_t, 4> sizes[] = {{1, 7, 3, 2}, {5, 11, 7, 19}, {3, 5, 17, 37}};
    for (int64_t isa = 1; isa <= sets; isa *= 2)
        for (int64_t kind = 0; kind < K2T_KINDS; ++kind)
            for (int64_t merge = 0; merge < K2T_MERGES; ++merge)
                for (int64_t directions : {1, 2})
                    for (bool masked : {false, true})
                        for (const auto& size : sizes) {
                            if (!(sets & isa) || (merge && directions == 1)) continue;
                            const Layer n = make(kind, directions, masked, size);
                            const Doubles wanted = expect(n, merge);
                            const Floats found = compute(isa, n, merge, 1 + count % 2);
                            if (file) std::fwrite(found.data(), sizeof(float), found.size(), file);
                            double error = found.size() == wanted.size() ? 0 : 9;
                            for (size_t i = 0; i < std::min(found.size(), wanted.size()); ++i) {
                                const double apart = std::fabs(found[i] - wanted[i]);
                                if (!(apart <= error)) error = apart;  // a NaN counts
                            }
                            const bool full = isa & FLOAT32;
                            if (!(error < (full ? 2e-6 : 0.1))) {
                                std::printf("isa %d kind %d merge %d directions %d masked %d: %g\n",
                                            int(isa), int(kind), int(merge), int(directions),
                                            int(masked), error);
                                wrong = 1;
                            }
                            if (full && !(error <= worst)) worst = error;
                            ++count;
                        }
    if (file) std::fclose(file);
    std::printf("%d layers, instruction sets %d, largest error of float32 %.1e: %s\n", count,
                int(sets), worst, wrong ? "WRONG" : "right");
    return wrong || !count;
}
