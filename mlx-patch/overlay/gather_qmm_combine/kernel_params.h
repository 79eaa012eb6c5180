// What the host tells the Metal kernels of gather_qmm_combine beside the arrays. Read by both compilers.

#pragma once

#ifndef __METAL__
#include <cstdint>
#endif

namespace zmlx {

struct GatherQmmCombineParams {
  // x [.., top_k, 1, K] -> y [.., N]
  int32_t K, N, top_k;
  // Whether scores are float32 while x is not: the products are then weighted and summed in float32.
  int32_t wide_scores;
  int32_t has_bias;
  int32_t unused;
  // Elements between two experts.
  int64_t w_stride, scales_stride, biases_stride, bias_stride;
};

} // namespace zmlx
