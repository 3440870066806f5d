// The binary interface between Python (native/library.py) and the kernel. Plain pointers only: no
// torch, no Python, so that one binary serves every version of both.
//
// B batch, T time, F features, H units, G gates, D directions, S states. Everything is float32.
#pragma once

#include <cstdint>

#include "codes.h"

#if defined(_WIN32)
#define K2T_EXPORT __declspec(dllexport)
#else
#define K2T_EXPORT __attribute__((visibility("default")))
#endif

extern "C" {

// What one direction computes with. All sizes are elements, not bytes.
struct K2tShape {
    int64_t kind;
    int64_t features;
    int64_t units;
    int64_t apart;                          // not 0: each gate reads an input and a state of its own,
                                            // which dropout makes; its weights are packed apart
};

// Some floats, or none: null.
struct K2tArray {
    const float* data;
    int64_t size;
};

// A layer's weights, packed for its directions. Index 1 of a pair is the backward one.
struct K2tWeights {
    K2tShape shape;
    int64_t directions;                     // 1 or 2
    const float* packed[2];                 // from k2t_pack, same instruction set
    const K2tArray* sources[2];             // the four that packed was made of, or null: unchecked
    uint64_t fingerprints[2];               // k2t_fingerprint of the sources at packing
};

// One layer's run over a batch of sequences, all directions. Eight bytes a field.
struct K2tRun {
    const K2tWeights* weights;
    int64_t activation;
    int64_t recurrent_activation;
    double activation_parameter;            // slope of leaky_relu, alpha of elu
    double recurrent_activation_parameter;
    int64_t merge;                          // with 2 directions: both write to one place
    int64_t batch;
    int64_t time;
    int64_t threads;
    const float* x;                         // (B, T, F), features contiguous
    int64_t x_batch_stride;
    int64_t x_time_stride;
    const int64_t* lengths;                 // (B,), or null: every step counts
    const float* h_0[2];                    // (B, H) contiguous, or null: zeros
    const float* c_0[2];                    // LSTM only
    float* out;                             // (B, T, D * H), merged (B, T, H); zeros past lengths; or
                                            // null: only the final states are wanted
    float* final;                           // (D * S, B, H): h, and an LSTM's c; or null
    float* kept[2];                         // (B, T, k2t_kept_parts, W), or null: no gradient
    const float* input_masks[2];            // dropout of all steps' input, (M, B, F), or null: none
    const float* state_masks[2];            // of the state that the gates read, (M, B, H), or null;
                                            // M: one for all gates, or one for each if apart
};

// A run of a program (program.h). Eight bytes a field. The addresses that it is given follow it in memory,
// from number 1 on.
struct K2tProgram {
    const int64_t* words;                   // of each operation: its code, how many follow, these
    int64_t count;
    int64_t floats;                         // of the workspace
    int64_t threads;
};

// Of the gradient of one layer's run, all directions: the gradients of its outputs and final states, and places for
// those of its weights, input and the states it started with.
struct K2tGradient {
    const float* d_out;                     // (B, T, D * H), units contiguous, or null: zeros
    int64_t d_out_batch_stride;
    int64_t d_out_time_stride;
    const float* d_final;                   // (D * S, B, H), or null: zeros
    float* d_weights[2][4];                 // (G*H, F), (G*H, H), (G*H,), (G*H,), as to k2t_pack
    float* d_x;                             // (B, T, F), nothing past lengths; or null: not wanted
    float* d_start;                         // (D * S, B, H)
};

// A hash of the sources that this library was built from (native/processors.py).
K2T_EXPORT uint64_t k2t_source_hash();

// The kernels this processor runs, as a bit set, in the order of processors.h. Those of reduced precision
// are for k2t_pack, k2t_fingerprint and k2t_run.
K2T_EXPORT int64_t k2t_instruction_sets();

// Number of floats that k2t_pack writes, for one instruction set (a bit of the above); of four bytes
// each, in reduced precision. This and every other size is below 0 for a code that is unknown.
K2T_EXPORT int64_t k2t_packed_size(int64_t isa, const K2tShape* shape);

// Rearrange torch's weights (G*H, F), (G*H, H), biases (G*H,) or null, for one instruction set.
// Returns a K2tResult, as everything below that is no size.
K2T_EXPORT int64_t k2t_pack(int64_t isa, const K2tShape* shape, const float* weight_ih,
                            const float* weight_hh, const float* bias_ih, const float* bias_hh,
                            float* packed);

// Write a fingerprint of the four weights of a direction, for one instruction set.
K2T_EXPORT int64_t k2t_fingerprint(int64_t isa, const K2tArray* sources, uint64_t* found);

// The number of true steps in each row of a mask (B, T), bytes; and whether they all come first.
K2T_EXPORT int64_t k2t_lengths(const uint8_t* mask, int64_t batch, int64_t time,
                               int64_t batch_stride, int64_t time_stride, int64_t* lengths);

// Run. Unless it returns K2T_DONE, out and final hold nothing of use. Lengths must be in [0, T].
K2T_EXPORT int64_t k2t_run(int64_t isa, const K2tRun* run);

// Run a program.
K2T_EXPORT int64_t k2t_run_program(int64_t isa, const K2tProgram* program);

// W of the above: units, rounded up to whole vectors.
K2T_EXPORT int64_t k2t_width(int64_t isa, int64_t units);

// Number of vectors of W floats that are kept of a step.
K2T_EXPORT int64_t k2t_kept_parts(int64_t kind);

// The weights for the way back, and the number of floats that takes. weight_ih: null if d_x is not
// wanted.
K2T_EXPORT int64_t k2t_gradient_packed_size(int64_t isa, const K2tShape* shape);
K2T_EXPORT int64_t k2t_gradient_pack(int64_t isa, const K2tShape* shape, const float* weight_ih,
                                     const float* weight_hh, float* packed);

// The gradient of a run, which is given as it was but for its weights: they are those of k2t_gradient_pack. Of an
// activation that falls somewhere there is none: its code is unknown here.
K2T_EXPORT int64_t k2t_gradient(int64_t isa, const K2tRun* run, const K2tGradient* gradient);

// Use an OpenMP runtime's threads: the address of its GOMP_parallel, or null for our own threads.
K2T_EXPORT void k2t_use_threads_of(void* gomp_parallel);
}
