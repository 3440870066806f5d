// Both formats by the processor's baseline, SSE2 or NEON: the same numbers in more time.
#include "isa.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define K2T_EXACT
#define K2T_LANES 4
#if defined(__aarch64__)
#define K2T_REGISTERS 32
#else
#define K2T_REGISTERS 16
#endif

namespace reduced_plain {
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
}  // namespace reduced_plain

const K2tKernel k2t_bfloat16_plain = reduced_plain::Reduced<reduced_plain::WideBFloat16>::KERNEL;
const K2tKernel k2t_int8_plain = reduced_plain::Reduced<reduced_plain::WideInt8>::KERNEL;
