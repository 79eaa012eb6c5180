// Products of one vector by matrices in `fast` precision (fast.cuh).

#pragma once

#include "cuda/fast.h"
#include "quantized_matmul/held.h"

namespace zmlx::on_cuda {

// All arrays in rows, outputs allocated; up to four matrices of rows that is_fast() takes. x: several vectors, where there is no
// norm; `bias`: of the one matrix, or null.
void launch_fast(
    Encoder& encoder,
    const array& x,
    const std::optional<HeldNorm>& norm,
    const std::vector<HeldMatrix>& matrices,
    const array* bias,
    int bits,
    int group_size);

} // namespace zmlx::on_cuda
