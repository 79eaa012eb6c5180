// What the host tells the Metal kernels of gather_qmm_swiglu beside the arrays. Read by both compilers.

#pragma once

#ifndef __METAL__
#include <cstdint>
#endif

namespace zmlx {

struct GatherQmmSwigluParams {
  // x [.., M, K] -> y [.., M, N]
  int32_t K, N, M;
  // Of the indices.
  int32_t ndim;
  // Elements between two matrices: of x, and between experts.
  int64_t x_stride;
  int64_t gate_w_stride, gate_scales_stride, gate_biases_stride;
  int64_t up_w_stride, up_scales_stride, up_biases_stride;
  // Elements between the experts' biases, where has_bias is not 0.
  int64_t gate_bias_stride, up_bias_stride;
  int32_t has_bias;
  // 0 silu, 1 gelu by the approximation with tanh, 2 OpenAI's clipped SwiGLU, which alone has the numbers.
  int32_t activation;
  float alpha, limit;
};

} // namespace zmlx
