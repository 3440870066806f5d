// The kernel of AMX with its instructions computed one by one: what shows on any processor that they are used
// rightly, and what the instructions are compared with where there are any. For tests alone.
#include "isa.h"
#if defined(__x86_64__)
#include <immintrin.h>  // for builds with flags of their own, as -march=native
#endif

#define K2T_EXACT
#define K2T_LANES 16
#define K2T_REGISTERS 32

namespace emulated_tiles {
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
}  // namespace emulated_tiles

const K2tKernel k2t_bfloat16_tiles = emulated_tiles::ByTiles<emulated_tiles::BFloat16>::KERNEL;
const K2tKernel k2t_int8_tiles = emulated_tiles::ByTiles<emulated_tiles::Int8>::KERNEL;
