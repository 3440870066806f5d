// Both formats by AMX. A compiler without the flags for it leaves the tables empty.
#include "isa.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#include <immintrin.h>

#define K2T_LANES 16

namespace amx {
#include "reduced.h"
}

const K2tKernel k2t_bfloat16_amx = amx::Reduced<amx::BFloat16, amx::TileProduct<amx::BFloat16>>::KERNEL;
const K2tKernel k2t_int8_amx = amx::Reduced<amx::Int8, amx::TileProduct<amx::Int8>>::KERNEL;
#else
const K2tKernel k2t_bfloat16_amx{};
const K2tKernel k2t_int8_amx{};
#endif
