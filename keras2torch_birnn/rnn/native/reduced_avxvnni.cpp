// int8 by AVX-VNNI. A compiler without the flag for it leaves the table empty.
#include "isa.h"

#if defined(__AVXVNNI__)
#include <immintrin.h>

#define K2T_LANES 8

namespace avxvnni {
#include "reduced.h"
}

const K2tKernel k2t_int8_avxvnni = avxvnni::Reduced<avxvnni::Int8, avxvnni::VectorProduct<avxvnni::Int8>>::KERNEL;
#else
const K2tKernel k2t_int8_avxvnni{};
#endif
