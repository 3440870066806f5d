// AVX-512. Compiled with the flags for it, run only where the processor has it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa.h"

#define K2T_LANES 16

namespace avx512 {
#include "float32.h"
}

const K2tKernel k2t_float32_avx512 = avx512::KERNEL;
#endif
