// The processor's baseline: SSE2 on x86-64, NEON on arm64.
#include "isa.h"

#define K2T_LANES 4

namespace plain {
#include "float32.h"
}

const K2tKernel k2t_float32_plain = plain::KERNEL;
