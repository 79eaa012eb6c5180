// A matrix by vectors in `fast` precision (fast.cuh).

#pragma once

#include "cuda/host.h"
#include "quantized_matmul/quantized_matmul.h"

namespace zmlx::on_cuda {

// Computes `out`, which has its memory, if it is asked for so and the kernel can. Inputs are in rows.
bool multiply_fast(const QuantizedMatmulRows& primitive, const std::vector<array>& in, array& out, Encoder& encoder);

} // namespace zmlx::on_cuda
