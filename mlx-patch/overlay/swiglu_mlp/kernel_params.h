// What the host tells the Metal kernels of swiglu_mlp beside the arrays. Read by both compilers.

#pragma once

#ifndef __METAL__
#include <cstdint>
#endif

namespace zmlx {

struct SwigluMlpParams {
  // x [K] -> y [N]
  int32_t K, N;
  int32_t has_bias;
  // 0 silu, 1 gelu by the approximation with tanh, 2 OpenAI's clipped SwiGLU, which alone has the numbers.
  int32_t activation;
  float alpha, limit;
};

} // namespace zmlx
