// Both formats by AVX2: the same numbers as with the instructions for them, in more time.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa.h"

#define K2T_EXACT
#define K2T_LANES 8
#define K2T_REGISTERS 16

namespace reduced_avx2 {
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
}  // namespace reduced_avx2

const K2tKernel k2t_bfloat16_avx2 = reduced_avx2::Reduced<reduced_avx2::WideBFloat16>::KERNEL;
const K2tKernel k2t_int8_avx2 = reduced_avx2::Reduced<reduced_avx2::WideInt8>::KERNEL;
#endif
