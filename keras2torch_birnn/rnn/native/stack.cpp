// Consecutive layers in one call: k2t_run for each, with the outputs between them in one workspace.
#include <algorithm>
#include <cstring>

#include "isa.h"
#include "memory.h"

namespace {

// Workspaces up to this many floats are kept for the next call of the thread, larger ones are freed.
constexpr long KEPT_FLOATS = 1 << 18;

thread_local Memory kept;

// The states of each layer, or null.
const K2tStackStates* states_of(const K2tStack& stack) {
    return stack.with_states ? reinterpret_cast<const K2tStackStates*>(&stack + 1) : nullptr;
}

// Floats of one step's output.
long width(const K2tStackLayer& layer) {
    const K2tWeights& weights = *layer.weights;
    const bool merged = layer.merge != K2T_APART && weights.directions == 2;
    return static_cast<long>(merged ? weights.shape.units : weights.directions * weights.shape.units);
}

// Outputs between the layers. Seen from the last layer, which writes the result, the layers write in
// turn to the first buffer and to the second; the result's memory is the second where it is wide enough.
struct Plan {
    long first = 0, second = 0, states = 0;  // floats
    bool in_result = true;                   // whether the second buffer is the result's memory

    explicit Plan(const K2tStack& stack) {
        const long rows = static_cast<long>(stack.batch * stack.time), count = static_cast<long>(stack.count);
        const long result = width(stack.layers[count - 1]);
        for (long i = 0; i < count; ++i) {
            const K2tWeights& weights = *stack.layers[i].weights;
            const long floats = static_cast<long>(stack.batch * weights.shape.units * weights.directions);
            if (stack.with_states) states = std::max(states, floats * state_count(weights.shape.kind));
            if (i == count - 1) break;
            long& buffer = (count - 1 - i) % 2 ? first : second;
            buffer = std::max(buffer, width(stack.layers[i]) * rows);
        }
        in_result = stack.out && second <= result * rows;
        if (in_result) second = 0;
    }

    long size() const { return aligned(first) + aligned(second) + states; }
    static long aligned(long floats) { return (floats + 15) / 16 * 16; }
};

// Copy the final states (D * S, B, H) to where they are wanted.
void hand_out(const K2tStack& stack, const K2tWeights& weights, const float* found,
              const K2tStackStates& to) {
    const size_t floats = static_cast<size_t>(stack.batch * weights.shape.units);
    for (long d = 0; d < weights.directions; ++d) {
        float* const wanted[] = {to.h, to.c};
        for (long s = 0; s < state_count(weights.shape.kind); ++s, found += floats)
            if (wanted[s])
                std::memcpy(wanted[s] + static_cast<size_t>(d) * floats, found, floats * sizeof(float));
    }
}

int64_t run(int64_t isa, const K2tStack& stack, const Plan& plan, float* workspace) {
    float* const first = workspace;
    float* const second = plan.in_result ? stack.out : first + Plan::aligned(plan.first);
    float* const finals = first + Plan::aligned(plan.first) + Plan::aligned(plan.second);
    const K2tStackStates* const all_states = states_of(stack);
    K2tRun call{};
    call.batch = stack.batch;
    call.time = stack.time;
    call.threads = stack.threads;
    call.lengths = stack.lengths;
    call.x = stack.x;
    call.x_batch_stride = stack.x_batch_stride;
    call.x_time_stride = stack.x_time_stride;
    for (long i = 0, left = static_cast<long>(stack.count) - 1; left >= 0; ++i, --left) {
        const K2tStackLayer& layer = stack.layers[i];
        set_layer(call, layer);
        const K2tStackStates states = all_states ? all_states[i] : K2tStackStates{};
        for (long d = 0; d < 2; ++d) {
            call.h_0[d] = states.h_0[d];
            call.c_0[d] = states.c_0[d];
        }
        call.final = states.h || states.c ? finals : nullptr;
        call.out = left == 0 ? stack.out : left % 2 ? first : second;
        if (const int64_t code = k2t_run(isa, &call)) return code;
        if (call.final) hand_out(stack, *layer.weights, finals, states);
        call.x = call.out;
        call.x_time_stride = width(layer);
        call.x_batch_stride = stack.time * width(layer);
    }
    return K2T_DONE;
}

}  // namespace

extern "C" int64_t k2t_run_stack(int64_t isa, const K2tStack* stack) {
    const Plan plan(*stack);
    Memory large;
    float* workspace = nullptr;
    if (plan.size()) {
        workspace = (plan.size() <= KEPT_FLOATS ? kept : large).at_least(plan.size());
        if (!workspace) return K2T_NO_MEMORY;
    }
    return run(isa, *stack, plan, workspace);
}
