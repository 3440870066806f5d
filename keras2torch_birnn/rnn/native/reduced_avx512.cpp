// bfloat16 by AVX-512, widened to float32 in registers: the same numbers as by AVX512-BF16, which multiplies at
// half the rate on some processors.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa.h"

#define K2T_EXACT
#define K2T_LANES 16
#define K2T_REGISTERS 32

namespace reduced_avx512 {
#include "simd.h"
#include "fingerprint.h"
#include "product.h"
#include "packed.h"
#include "cells.h"
#include "ratios.h"
#include "layer.h"
#include "formats.h"
#include "vectors.h"
#include "reduced.h"
}  // namespace reduced_avx512

const K2tKernel k2t_bfloat16_avx512 = reduced_avx512::Reduced<reduced_avx512::WideBFloat16>::KERNEL;
#endif
