// All of float32's kernel. Included once by every isa_*.cpp, inside that file's namespace.
#include "simd.h"
#include "fingerprint.h"
#include "product.h"
#include "packed.h"
#include "cells.h"
#include "layer.h"
#include "split_units.h"
#include "step_sums.h"
#include "gradient.h"
#include "operations.h"

static constexpr K2tKernel KERNEL = {
    packed_size, pack, scratch_size, run,
    split_size, split_start, split_run, fingerprint, LANES,
    kept_parts,
    gradient_packed_size, gradient_pack, gradient_scratch_size, gradient_run,
    sums_size, write_sums,
    operate,
};
