// int8 by AVX-VNNI. A compiler without the flag for it leaves the table empty.
#include "isa.h"

#if defined(__AVXVNNI__)
#include <immintrin.h>

#define K2T_EXACT
#define K2T_LANES 8
#define K2T_REGISTERS 16

namespace avxvnni {
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
}  // namespace avxvnni

const K2tKernel k2t_int8_avxvnni = avxvnni::Reduced<avxvnni::Int8>::KERNEL;
#else
const K2tKernel k2t_int8_avxvnni{};
#endif
