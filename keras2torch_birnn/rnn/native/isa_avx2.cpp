// AVX2 and FMA. Compiled with the flags for them, run only where the processor has them.
#if defined(__x86_64__)
#include "isa.h"

#define K2T_LANES 8

namespace avx2 {
#include "float32.h"
}

const K2tKernel k2t_float32_avx2 = avx2::KERNEL;
#endif
