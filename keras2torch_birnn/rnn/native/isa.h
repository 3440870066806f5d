// What every instruction set offers to the dispatcher: a table of functions.
#pragma once

#include "kernel.h"
#include "program.h"
#include "system.h"

// Rows of one task at most: their states and sums stay in cache.
constexpr int64_t MOST_ROWS = 64;

// Static: each file has its own, compiled with its own flags.
static inline int64_t gate_count(int64_t kind) {
    switch (static_cast<K2tKind>(kind)) {
        case K2T_LSTM: return 4;
        case K2T_GRU_AFTER:
        case K2T_GRU_BEFORE: return 3;
        case K2T_SIMPLE: return 1;
    }
    __builtin_trap();
}

static inline int64_t state_count(int64_t kind) { return kind == K2T_LSTM ? 2 : 1; }

// Whether a direction has masks of dropout.
static inline bool has_masks(const float* const* masks) { return masks[0] || masks[1]; }

// A run and its weights in one struct.
struct K2tCall : K2tWeights, K2tRun {};

// And what the gradient of a run reads and writes.
struct K2tWayBack : K2tCall, K2tGradient {};

// One direction over some rows of the batch: order[first], order[first + stride], ...
struct K2tTask {
    int64_t direction;
    const int64_t* order;
    int64_t first, stride, count;
    uint8_t* visits;  // (B, T), zeros at first: whether a step of a row was written; for merging
    int64_t row(int64_t r) const { return order[first + r * stride]; }
};

// One thread's part of one phase of a direction of a single row (split_units.h).
struct K2tPart {
    int64_t direction;
    int64_t phase;
    int64_t part, parts;
    uint8_t* visits;  // (T, parts), as above
};

struct K2tKernel {
    int64_t (*packed_size)(const K2tShape&);
    void (*pack)(const K2tShape&, const float*, const float*, const float*, const float*, float*);
    int64_t (*scratch_size)(const K2tCall&, int64_t rows);
    void (*run)(const K2tCall&, const K2tTask&, float* scratch);
    int64_t (*split_size)(const K2tShape&);
    int64_t (*split_start)(const K2tCall&, int64_t direction, float* shared);
    void (*split_run)(const K2tCall&, const K2tPart&, float* shared);
    uint64_t (*fingerprint)(const K2tArray*, int64_t count, uint64_t start);
    int64_t lanes;
    int64_t (*kept_parts)(int64_t kind);
    int64_t (*gradient_packed_size)(const K2tShape&);
    void (*gradient_pack)(const K2tShape&, const float*, const float*, float*);
    int64_t (*gradient_scratch_size)(const K2tCall&, int64_t rows);
    void (*gradient_run)(const K2tWayBack&, const K2tTask&, float* sums, float* scratch);
    int64_t (*sums_size)(const K2tShape&);
    void (*write_sums)(const K2tWayBack&, int64_t direction, const float* sums, int64_t tasks);
    int64_t (*operate)(int64_t code, const int64_t* words, const K2tPlaces&);
    int64_t (*task_rows)(const K2tShape&) = nullptr;  // the most of a task, where it is not MOST_ROWS
};

// The kernel of an instruction set; null if it is none of the bits of k2t_instruction_sets.
const K2tKernel* k2t_kernel(int64_t isa);

// Every kernel of the table. Those of reduced precision are forward only, and no row is split by units: the
// other functions are null. All are null where the compiler did not know the instruction set.
#define K2T_DECLARE(constant, kernel, ...) extern const K2tKernel kernel;
K2T_KERNELS(K2T_DECLARE)
#undef K2T_DECLARE
