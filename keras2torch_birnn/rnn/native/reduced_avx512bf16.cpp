// bfloat16 by AVX512-BF16. A compiler without the flag for it leaves the table empty.
#include "isa.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

#define K2T_LANES 16

namespace avx512bf16 {
#include "reduced.h"
}

const K2tKernel k2t_bfloat16_avx512bf16 = avx512bf16::Reduced<avx512bf16::BFloat16, avx512bf16::VectorProduct<avx512bf16::BFloat16>>::KERNEL;
#else
const K2tKernel k2t_bfloat16_avx512bf16{};
#endif
