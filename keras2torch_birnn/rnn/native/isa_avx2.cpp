// AVX2 and FMA. Compiled with the flags for them, run only where the processor has them.
#if defined(__x86_64__)
#include "isa.h"

#define K2T_LANES 8
#define K2T_REGISTERS 16

namespace avx2 {
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
}  // namespace avx2

const K2tKernel k2t_float32_avx2 = {
    avx2::packed_size, avx2::pack, avx2::scratch_size, avx2::run,
    avx2::split_size, avx2::split_start, avx2::split_run, avx2::fingerprint, avx2::LANES,
    avx2::kept_parts,
    avx2::gradient_packed_size, avx2::gradient_pack, avx2::gradient_scratch_size, avx2::gradient_run,
    avx2::sums_size, avx2::write_sums,
    avx2::operate,
};
#endif
