// Whole models in one call: each operation in turn, in a workspace that the thread keeps.
#include "program.h"

#include <algorithm>
#include <cstring>

#include "isa.h"
#include "memory.h"

namespace {

thread_local Memory kept;

// The number of valid steps of each row of a mask; false if they do not all come first.
bool count_steps(const float* mask, int64_t batch, int64_t time, int64_t* lengths) {
    for (int64_t b = 0; b < batch; ++b, mask += time) {
        int64_t length = 0;
        while (length < time && mask[length] != 0) ++length;
        if (std::any_of(mask + length, mask + time, [](float step) { return step != 0; })) return false;
        lengths[b] = length;
    }
    return true;
}

int64_t run_layer(int64_t isa, const K2tRecurrentWords& words, const K2tPlaces& places, int64_t threads) {
    const auto at = [&](int64_t word) { return word ? places.of(word) : nullptr; };
    const K2tStackLayer& layer = *words.layer;
    const K2tShape& shape = layer.weights->shape;
    const int64_t directions = layer.weights->directions, rows = words.batch;
    K2tRun call{};
    call.weights = layer.weights;
    call.activation = layer.activation;
    call.recurrent_activation = layer.recurrent_activation;
    call.activation_parameter = layer.activation_parameter;
    call.recurrent_activation_parameter = layer.recurrent_activation_parameter;
    call.merge = layer.merge;
    call.batch = rows;
    call.time = words.time;
    call.threads = threads;
    call.x = at(words.x);
    call.x_batch_stride = words.time * shape.features;
    call.x_time_stride = shape.features;
    if (layer.from_end) {
        call.x += (words.time - 1) * shape.features;
        call.x_time_stride = -shape.features;
    }
    int64_t* lengths = nullptr;
    if (words.mask) {
        lengths = reinterpret_cast<int64_t*>(at(words.lengths));
        if (!count_steps(at(words.mask), rows, words.time, lengths)) return K2T_BY_TORCH;
        if (std::all_of(lengths, lengths + rows, [&](int64_t length) { return length == words.time; }))
            lengths = nullptr;
        else if (words.out && !(words.zeros[0] && (directions == 1 || words.zeros[1])))
            return K2T_BY_TORCH;
    }
    call.lengths = lengths;
    for (long d = 0; d < 2; ++d) {
        call.h_0[d] = at(words.h_0[d]);
        call.c_0[d] = at(words.c_0[d]);
    }
    call.out = at(words.out);
    call.final = at(words.final);
    if (const int64_t code = k2t_run(isa, &call)) return code;
    if (!words.last) return 0;
    const int64_t states = shape.kind == K2T_LSTM ? 2 : 1, units = shape.units;
    float* to = at(words.last);
    for (int64_t d = 0; d < directions; ++d) {
        const float* h = call.final + d * states * rows * units;
        for (int64_t b = 0; b < rows; ++b, h += units, to += units) {
            // The last step forward, the first one backward.
            const bool valid = !lengths || lengths[b] == words.time || (d == 1 && lengths[b]);
            if (valid || !words.zeros[d])
                std::memcpy(to, h, static_cast<size_t>(units) * sizeof(float));
            else
                std::fill(to, to + units, 0.0f);
        }
    }
    return 0;
}

}  // namespace

extern "C" int64_t k2t_run_program(int64_t isa, const K2tProgram* program) {
    float* const workspace = kept.at_least(program->floats);
    if (!workspace) return 1;
    const K2tPlaces places{workspace, reinterpret_cast<float* const*>(program + 1) - 1};
    const K2tKernel& with = k2t_kernel(isa);
    for (const int64_t *word = program->words, *end = word + program->count; word < end; word += 2 + word[1]) {
        const int64_t code =
            word[0] == K2T_RECURRENT
                ? run_layer(isa, *reinterpret_cast<const K2tRecurrentWords*>(word + 2), places, program->threads)
                : with.operate(word[0], word + 2, places);
        if (code) return code;
    }
    return 0;
}
