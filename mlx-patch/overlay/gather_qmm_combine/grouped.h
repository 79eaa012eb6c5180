// gather_qmm_combine of many tokens, whose weights are read once for all lines that have the same expert.

#pragma once

#include "cuda/host.h"
#include "gather_qmm_combine/gather_qmm_combine.h"

namespace zmlx::on_cuda {

// Computes `out`, which has its memory, if there are lines enough. Inputs are in rows.
bool combine_grouped(const GatherQMMCombine& primitive, const std::vector<array>& in, array& out, Encoder& encoder);

} // namespace zmlx::on_cuda
