// Both formats by AMX. A compiler without the flags for it leaves the tables empty.
#include "isa.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#include <immintrin.h>

#define K2T_EXACT
#define K2T_LANES 16
#define K2T_REGISTERS 32

namespace amx {
#include "simd.h"
#include "fingerprint.h"
#include "product.h"
#include "packed.h"
#include "cells.h"
#include "ratios.h"
#include "layer.h"
#include "formats.h"
#include "vectors.h"
#include "tiles.h"
#include "reduced.h"

template <class Format>
using ByTiles = Reduced<Format, TileProduct<Format>>;
}  // namespace amx

const K2tKernel k2t_bfloat16_amx = amx::ByTiles<amx::BFloat16>::KERNEL;
const K2tKernel k2t_int8_amx = amx::ByTiles<amx::Int8>::KERNEL;
#else
const K2tKernel k2t_bfloat16_amx{};
const K2tKernel k2t_int8_amx{};
#endif
