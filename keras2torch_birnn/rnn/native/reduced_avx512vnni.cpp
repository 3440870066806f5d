// int8 by AVX512-VNNI. A compiler without the flag for it leaves the table empty.
#include "isa.h"

#if defined(__AVX512VNNI__)
#include <immintrin.h>

#define K2T_LANES 16

namespace avx512vnni {
#include "reduced.h"
}

const K2tKernel k2t_int8_avx512vnni = avx512vnni::Reduced<avx512vnni::Int8, avx512vnni::VectorProduct<avx512vnni::Int8>>::KERNEL;
#else
const K2tKernel k2t_int8_avx512vnni{};
#endif
