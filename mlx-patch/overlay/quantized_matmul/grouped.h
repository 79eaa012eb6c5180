// quantized_matmul of many rows of x.

#pragma once

#include "cuda/host.h"
#include "quantized_matmul/quantized_matmul.h"

namespace zmlx::on_cuda {

// Computes `out`, which has its memory. Inputs are in rows, and the weight is one matrix.
void multiply_many_rows(const QuantizedMatmulRows& primitive, const std::vector<array>& in, array& out, Encoder& encoder);

} // namespace zmlx::on_cuda
