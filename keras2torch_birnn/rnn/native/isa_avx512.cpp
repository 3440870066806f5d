// AVX-512. Compiled with the flags for it, run only where the processor has it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa.h"

#define K2T_LANES 16
#define K2T_REGISTERS 32

namespace avx512 {
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
}  // namespace avx512

const K2tKernel k2t_float32_avx512 = {
    avx512::packed_size, avx512::pack, avx512::scratch_size, avx512::run,
    avx512::split_size, avx512::split_start, avx512::split_run, avx512::fingerprint, avx512::LANES,
    avx512::kept_parts,
    avx512::gradient_packed_size, avx512::gradient_pack, avx512::gradient_scratch_size, avx512::gradient_run,
    avx512::sums_size, avx512::write_sums,
    avx512::operate,
};
#endif
