// gather_qmm_swiglu in `fast` precision.

#pragma once

#include "cuda/host.h"
#include "gather_qmm_swiglu/gather_qmm_swiglu.h"

namespace zmlx::on_cuda {

// Computes `out`, which has its memory, if it is asked for so and the kernel can. Inputs are in rows; `one_x`: all products are
// of one vector.
bool swiglu_fast(
    const GatherQMMSwiGLU& primitive, const std::vector<array>& in, array& out, bool one_x, Encoder& encoder);

} // namespace zmlx::on_cuda
