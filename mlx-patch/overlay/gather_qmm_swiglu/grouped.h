// gather_qmm_swiglu of many lines, whose weights are read once for all that have the same expert.

#pragma once

#include "cuda/host.h"
#include "gather_qmm_swiglu/gather_qmm_swiglu.h"

namespace zmlx::on_cuda {

// Computes `out`, which has its memory, if there are lines enough. Inputs are in rows.
bool swiglu_grouped(const GatherQMMSwiGLU& primitive, const std::vector<array>& in, array& out, Encoder& encoder);

} // namespace zmlx::on_cuda
