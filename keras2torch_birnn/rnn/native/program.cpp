// Whole models in one call: each operation in turn, in one workspace.
#include "program.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "isa.h"
#include "memory.h"

namespace {

// Workspaces up to this many floats are kept for the next call of the thread, larger ones are freed.
constexpr int64_t KEPT_FLOATS = (1 << 20) + 1024;

thread_local Memory kept;

struct Steps {
    bool all = true;       // whether every step is valid
    bool in_front = true;  // whether the valid steps of each row come first
};

// Count the valid steps of each row of a mask (B, T) of numbers or bytes.
template <class T>
Steps count_steps(const T* mask, int64_t batch, int64_t time, int64_t batch_stride, int64_t time_stride,
                  int64_t* lengths) {
    Steps found;
    for (int64_t b = 0; b < batch; ++b, mask += batch_stride) {
        int64_t count = 0, last = 0;
        for (int64_t t = 0; t < time; ++t)
            if (mask[t * time_stride] != 0) {
                ++count;
                last = t + 1;
            }
        lengths[b] = count;
        found.all = found.all && count == time;
        found.in_front = found.in_front && count == last;
    }
    return found;
}

void copy_floats(const float* from, int64_t count, float* to) {
    if (from)
        std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    else
        std::fill(to, to + count, 0.0f);
}

// Move the valid steps of each row to the front. x: (B, T, F).
void pack_steps(const float* mask, int64_t batch, int64_t time, int64_t features, const float* x, float* to) {
    for (int64_t b = 0; b < batch; ++b, mask += time, x += time * features, to += time * features)
        for (int64_t t = 0, n = 0; t < time; ++t)
            if (mask[t] != 0) copy_floats(x + t * features, features, to + n++ * features);
}

// Move the outputs of a row's valid steps back, and fill the others: with zeros, or with what was read
// before. Steps are `width` floats apart, of which `units` are this direction's.
void unpack_steps(const float* mask, const int64_t time, int64_t valid, bool backward, bool zeros,
                  int64_t width, int64_t units, const float* packed, float* to) {
    const float* shown = nullptr;
    for (int64_t i = 0, n = 0; i < time; ++i) {
        const int64_t t = backward ? time - 1 - i : i;
        const bool reads = mask[t] != 0;
        if (reads) {
            shown = packed + (backward ? valid - 1 - n : n) * width;
            ++n;
        }
        copy_floats(reads || !zeros ? shown : nullptr, units, to + t * width);
    }
}

int64_t run_layer(int64_t isa, const K2tRecurrentWords& words, const K2tPlaces& places, int64_t threads) {
    const auto at = [&](int64_t word) { return word ? places.of(word) : nullptr; };
    // What an operand in the place of an address stands for.
    const auto resolve = [&](auto*& pointer) {
        pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at(reinterpret_cast<int64_t>(pointer)));
    };
    K2tRun call = words.run;
    call.threads = threads;
    resolve(call.x);
    resolve(call.out);
    resolve(call.final);
    for (int64_t d = 0; d < 2; ++d) {
        resolve(call.h_0[d]);
        resolve(call.c_0[d]);
    }
    const K2tShape& shape = call.weights->shape;
    const int64_t directions = call.weights->directions, rows = call.batch, time = call.time;
    const bool merged = call.merge != K2T_APART && directions == 2;
    float* const out = call.out;
    const float* const mask = at(words.mask);
    Steps steps;
    bool unpacks = false;
    if (mask) {
        int64_t* const lengths = reinterpret_cast<int64_t*>(at(reinterpret_cast<int64_t>(call.lengths)));
        steps = count_steps(mask, rows, time, time, 1, lengths);
        const bool zeros = words.zeros[0] && (directions == 1 || words.zeros[1]);
        unpacks = call.out && !steps.all && !(zeros && steps.in_front);
        call.lengths = steps.all ? nullptr : lengths;
        if (!steps.in_front) {
            pack_steps(mask, rows, time, shape.features, call.x, at(words.packed_x));
            call.x = at(words.packed_x);
        }
        if (unpacks) call.out = at(words.packed_out);
    }
    if (const int64_t code = k2t_run(isa, &call)) return code;
    const int64_t units = shape.units, shown = merged ? 1 : directions, width = shown * units;
    for (int64_t b = 0; unpacks && b < rows; ++b)
        for (int64_t d = 0; d < shown; ++d)
            unpack_steps(mask + b * time, time, call.lengths[b], d == 1, words.zeros[d], width, units,
                         call.out + b * time * width + d * units, out + b * time * width + d * units);
    if (!words.last) return K2T_DONE;
    const int64_t states = state_count(shape.kind);
    float* to = at(words.last);
    for (int64_t d = 0; d < directions; ++d) {
        const float* h = call.final + d * states * rows * units;
        for (int64_t b = 0; b < rows; ++b, h += units, to += units) {
            // The last step that is read: the last one forward, the first one backward.
            const bool valid = steps.all || mask[b * time + (d == 1 ? 0 : time - 1)] != 0;
            copy_floats(valid || !words.zeros[d] ? h : nullptr, units, to);
        }
    }
    return K2T_DONE;
}

}  // namespace

extern "C" int64_t k2t_lengths(const uint8_t* mask, int64_t batch, int64_t time, int64_t batch_stride,
                               int64_t time_stride, int64_t* lengths) {
    return count_steps(mask, batch, time, batch_stride, time_stride, lengths).in_front;
}

extern "C" int64_t k2t_run_program(int64_t isa, const K2tProgram* program) {
    const K2tKernel* const with = k2t_kernel(isa);
    if (!with) return K2T_UNKNOWN_CODE;
    Memory large;
    float* const workspace = (program->floats <= KEPT_FLOATS ? kept : large).at_least(program->floats);
    if (!workspace) return K2T_NO_MEMORY;
    const K2tPlaces places{workspace, reinterpret_cast<float* const*>(program + 1) - 1};
    for (const int64_t *word = program->words, *end = word + program->count; word < end; word += 2 + word[1]) {
        const int64_t code =
            word[0] == K2T_RECURRENT
                ? run_layer(isa, *reinterpret_cast<const K2tRecurrentWords*>(word + 2), places, program->threads)
                : !with->operate ? K2T_UNKNOWN_CODE : with->operate(word[0], word + 2, places);
        if (code) return code;
    }
    return K2T_DONE;
}
