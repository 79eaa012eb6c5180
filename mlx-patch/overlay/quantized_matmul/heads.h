// Products of a vector by a matrix for each head, on CUDA.

#pragma once

#include "cuda/host.h"
#include "zmlx/quant_params.h"

namespace zmlx::on_cuda {

// x [1, H, 1, K] by w [1, H, N, K] into `out` [1, H, 1, N]; `in` is x, w, its scales and biases.
void quantized_heads(const std::vector<array>& in, int bits, int group_size, array& out, Encoder& encoder);

} // namespace zmlx::on_cuda
