// A program: operations that run in one call, of a whole model for one set of sizes.
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

// The words of a recurrent layer: its run, with operands in the place of addresses other than the weights',
// and what a program adds to it. Operands are 0 where there are none; the workspace has no such.
struct K2tRecurrentWords {
    K2tRun run;                             // threads: 0; lengths: with a mask, memory for them
    int64_t mask;                           // (B, T); x is contiguous then; memory for the next two, too
    int64_t packed_x;                       // as x: the valid steps of each row first
    int64_t packed_out;                     // as out, where there is one
    int64_t last;                           // (D, B, H): the outputs of the last steps that are read
    int64_t zeros[2];                       // whether masked steps show zeros, not the step before; that
                                            // needs outputs of each direction
};
