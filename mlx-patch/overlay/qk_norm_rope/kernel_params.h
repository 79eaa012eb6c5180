// What the host tells the Metal kernels of qk_norm_rope beside the arrays. Read by both compilers.

#pragma once

#ifndef __METAL__
#include <cstdint>
#endif

namespace zmlx {

struct QkNormRopeParams {
  // Elements of x between two batch rows, tokens, heads and numbers of a head; between the offsets of two batch rows.
  int64_t x_batch, x_token, x_head, x_number, offset_batch;
  int32_t head_dim;
  // Of which are rotated, in pairs.
  int32_t dims;
  int32_t has_weight, has_freqs, traditional;
  // Whether stock runs its kernel for one token, which takes the position for a signed number.
  int32_t single;
  float eps;
  // log2 of rope's base, its scale, and what the rotated numbers are multiplied by before.
  float log2_base, scale, input_scale;
};

} // namespace zmlx
