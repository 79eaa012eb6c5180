// What the host tells the Metal kernels of moe_router beside the arrays. Read by both compilers.

#pragma once

#ifndef __METAL__
#include <cstdint>
#endif

namespace zmlx {

struct MoeRouterParams {
  int32_t num_experts, top_k;
  // 0 softmax, 1 sigmoid, 2 softmax of the chosen.
  int32_t scoring;
  // Whether a softmax is accumulated in float32.
  int32_t precise;
  int32_t descending;
  // The type of the selection bias: 0 none, 1 float32, 2 float16, 3 bfloat16.
  int32_t bias_type;
  int32_t num_groups, top_k_groups;
  int32_t normalize;
  float epsilon, scale;
};

} // namespace zmlx
