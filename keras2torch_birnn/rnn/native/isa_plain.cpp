// The processor's baseline: SSE2 on x86-64, NEON on arm64.
#include "isa.h"

#define K2T_LANES 4
#if defined(__aarch64__)
#define K2T_REGISTERS 32
#else
#define K2T_REGISTERS 16
#endif

namespace plain {
#include "simd.h"
#include "fingerprint.h"
#include "product.h"
#include "packed.h"
#include "cells.h"
#include "layer.h"
#include "split_units.h"
#include "step_sums.h"
#include "gradient.h"
#include "operations.h"
}  // namespace plain

const K2tKernel k2t_float32_plain = {
    plain::packed_size, plain::pack, plain::scratch_size, plain::run,
    plain::split_size, plain::split_start, plain::split_run, plain::fingerprint, plain::LANES,
    plain::kept_parts,
    plain::gradient_packed_size, plain::gradient_pack, plain::gradient_scratch_size, plain::gradient_run,
    plain::sums_size, plain::write_sums,
    plain::operate,
};
