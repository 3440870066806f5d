// The numbers that Python and the kernel share, each with its name in Python's tables (codes.py);
// tests/rnn/test_codes.py compares them. CODE(constant, name) stands for one number, from 0 on.
//
// A call with any other number is refused at entry. So a switch over one of these enums lists every
// constant, which the compiler checks; what stands behind it ends the program.
#pragma once

#include <cstdint>

#include "processors.h"

// A cell's kind. Gates in torch's order: LSTM i, f, g, o; GRU r, z, n.
#define K2T_KIND_CODES(CODE) \
    CODE(K2T_LSTM, "LSTM") CODE(K2T_GRU_AFTER, "GRU") CODE(K2T_GRU_BEFORE, "GRU before") \
    CODE(K2T_SIMPLE, "SimpleRNN")

#define K2T_ACTIVATION_CODES(CODE) \
    CODE(K2T_LINEAR, "linear") \
    CODE(K2T_TANH, "tanh") \
    CODE(K2T_SIGMOID, "sigmoid") \
    CODE(K2T_HARD_SIGMOID_0_2, "hard_sigmoid_0.2") \
    CODE(K2T_HARD_SIGMOID_1_6, "hard_sigmoid_1/6") \
    CODE(K2T_RELU, "relu") \
    CODE(K2T_RELU6, "relu6") \
    CODE(K2T_LEAKY_RELU, "leaky_relu") \
    CODE(K2T_ELU, "elu") \
    CODE(K2T_SELU, "selu") \
    CODE(K2T_SOFTSIGN, "softsign") \
    CODE(K2T_SILU, "silu") \
    CODE(K2T_HARD_SILU, "hard_silu")

// How the two directions become one output; Keras' merge modes. K2T_APART: each has its own, and
// "concat" is two side by side.
#define K2T_MERGE_CODES(CODE) \
    CODE(K2T_APART, "concat") CODE(K2T_SUM, "sum") CODE(K2T_MUL, "mul") CODE(K2T_AVE, "ave")

// What a call returns. K2T_STALE: the sources are not what packed was made of. K2T_BY_TORCH: a value
// asks for what only torch computes.
#define K2T_RESULT_CODES(CODE) \
    CODE(K2T_DONE, "done") CODE(K2T_NO_MEMORY, "no memory") CODE(K2T_WRONG_LENGTH, "wrong length") \
    CODE(K2T_STALE, "stale") CODE(K2T_BY_TORCH, "by torch") CODE(K2T_UNKNOWN_CODE, "unknown code")

// The operations of a program (program.h).
#define K2T_OPERATION_CODES(CODE) \
    CODE(K2T_RECURRENT, "recurrent") \
    CODE(K2T_READ, "read") \
    CODE(K2T_TRUNCATE, "truncate") \
    CODE(K2T_LOOK_UP, "look_up") \
    CODE(K2T_MAP, "map") \
    CODE(K2T_REDUCE, "reduce") \
    CODE(K2T_SOFTMAX, "softmax") \
    CODE(K2T_NORMALIZE, "normalize") \
    CODE(K2T_MULTIPLY, "multiply") \
    CODE(K2T_CONVOLVE, "convolve") \
    CODE(K2T_POOL, "pool")

// What K2T_MAP computes of operands a, b, c and a number p. Conditions are 1 or 0. SELECT: b where a is
// not 0, else c. The last one counts on: the code of the activation is added to it.
#define K2T_MAP_CODES(CODE) \
    CODE(K2T_MAP_COPY, "copy") \
    CODE(K2T_MAP_ADD, "add") /* a + p b */ \
    CODE(K2T_MAP_MULTIPLY, "multiply") \
    CODE(K2T_MAP_DIVIDE, "divide") \
    CODE(K2T_MAP_MAXIMUM, "maximum") \
    CODE(K2T_MAP_MINIMUM, "minimum") \
    CODE(K2T_MAP_EQUAL, "equal") \
    CODE(K2T_MAP_NOT_EQUAL, "not_equal") \
    CODE(K2T_MAP_LESS, "less") \
    CODE(K2T_MAP_LESS_EQUAL, "less_equal") \
    CODE(K2T_MAP_SELECT, "select") \
    CODE(K2T_MAP_MULTIPLY_ADD, "multiply_add") /* a b + c */ \
    CODE(K2T_MAP_OVER_ROOT, "over_root") /* a / sqrt(b + p) */ \
    CODE(K2T_MAP_ACTIVATION, "activation")

#define K2T_REDUCTION_CODES(CODE) CODE(K2T_REDUCE_SUM, "sum") CODE(K2T_REDUCE_MAXIMUM, "maximum")

#define K2T_POOLING_CODES(CODE) CODE(K2T_POOL_MAXIMUM, "maximum") CODE(K2T_POOL_MEAN, "mean")

#define K2T_NUMBER_CODES(CODE) \
    CODE(K2T_INT32, "int32") CODE(K2T_INT64, "int64") CODE(K2T_BOOL, "bool") CODE(K2T_FLOAT32, "float32")

#define K2T_CONSTANT(constant, name) constant,
#define K2T_COUNT(constant, name) +1
#define K2T_KERNEL_CONSTANT(constant, ...) constant,

enum K2tKind : int64_t { K2T_KIND_CODES(K2T_CONSTANT) };
enum K2tActivation : int64_t { K2T_ACTIVATION_CODES(K2T_CONSTANT) };
enum K2tInstructionSet : int64_t { K2T_KERNELS(K2T_KERNEL_CONSTANT) };  // numbers of bits
enum K2tMerge : int64_t { K2T_MERGE_CODES(K2T_CONSTANT) };
enum K2tResult : int64_t { K2T_RESULT_CODES(K2T_CONSTANT) };
enum K2tOperation : int64_t { K2T_OPERATION_CODES(K2T_CONSTANT) };
enum K2tMap : int64_t { K2T_MAP_CODES(K2T_CONSTANT) };
enum K2tReduction : int64_t { K2T_REDUCTION_CODES(K2T_CONSTANT) };
enum K2tPooling : int64_t { K2T_POOLING_CODES(K2T_CONSTANT) };
enum K2tNumbers : int64_t { K2T_NUMBER_CODES(K2T_CONSTANT) };

constexpr int64_t K2T_KINDS = K2T_KIND_CODES(K2T_COUNT);
constexpr int64_t K2T_ACTIVATIONS = K2T_ACTIVATION_CODES(K2T_COUNT);
constexpr int64_t K2T_MERGES = K2T_MERGE_CODES(K2T_COUNT);
constexpr int64_t K2T_REDUCTIONS = K2T_REDUCTION_CODES(K2T_COUNT);
constexpr int64_t K2T_POOLINGS = K2T_POOLING_CODES(K2T_COUNT);

// Whether a code is one of so many.
static inline bool k2t_knows(int64_t code, int64_t count) { return code >= 0 && code < count; }
