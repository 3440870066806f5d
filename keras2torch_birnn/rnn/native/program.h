// A program: operations that run in one call, of a whole model or of consecutive layers, for one set of sizes.
#pragma once

#include "kernel.h"

// Operands are words: below 0, the complement of an offset in the workspace; up to K2T_MOST_GIVEN, the
// number of a given address, such as an input's; else an address.
constexpr int64_t K2T_MOST_GIVEN = 256;

struct K2tPlaces {
    float* workspace;
    float* const* given;
    float* of(int64_t word) const {
        return word < 0 ? workspace + ~word
                        : word < K2T_MOST_GIVEN ? given[word] : reinterpret_cast<float*>(word);
    }
};

// The words of a recurrent layer. Operands are 0 where there are none; the workspace has no such.
struct K2tRecurrentWords {
    int64_t layer;                          // a K2tLayer
    int64_t batch;
    int64_t time;
    int64_t x;                              // (B, T, F), features contiguous; with a mask all of it
    int64_t x_batch_stride;
    int64_t x_time_stride;
    int64_t mask;                           // (B, T); with it memory for the next three
    int64_t lengths;                        // (B,); without a mask they are read, where there are any
    int64_t packed_x;                       // as x: the valid steps of each row first
    int64_t packed_out;                     // as out, where there is one
    int64_t h_0[2];                         // (B, H)
    int64_t c_0[2];
    int64_t out;                            // (B, T, D * H), merged (B, T, H)
    int64_t last;                           // (D, B, H): the outputs of the last steps that are read
    int64_t final;                          // (D * S, B, H)
    int64_t zeros[2];                       // whether masked steps show zeros, not the step before; that
                                            // needs outputs of each direction
};
