// Rows of an affine quantized matrix, as MLX's gather_qmv kernels read them.

#pragma once

#include "mlx/backend/metal/kernels/utils.h"
#include "mlx/backend/metal/kernels/steel/gemm/gemm.h"
#include "mlx/backend/metal/kernels/quantized_utils.h"
#include "mlx/backend/metal/kernels/quantized.h"

namespace zmlx {

// What one lane holds of some rows. `packs` words of weights are its share of a step: stock's fast kernel takes two (one
// for 2 bits), its general one takes one, and which partial sum a weight goes to decides the bits of the result.
template <typename T, int group_size, int bits, int packs>
struct AffineRows {
  using Scale = T;
  MLX_MTL_CONST int pack_values = get_pack_factor<bits, 32>();
  MLX_MTL_CONST int pack_bytes = get_bytes_per_pack<bits, 32>();
  // of x, for one lane and for the simdgroup
  MLX_MTL_CONST int num_values = pack_values * packs;
  MLX_MTL_CONST int step = num_values * SIMD_SIZE;

  const int row_bytes;
  const int row_groups;
  const device uint8_t* w;
  const device T* scales;
  const device T* biases;

  // The matrix begins at `w_`; K is the length of its rows.
  AffineRows(
      const device uint32_t* w_,
      const device T* scales_,
      const device T* biases_,
      int K,
      int first_row,
      int lane) thread
      : row_bytes(K / pack_values * pack_bytes),
        row_groups(K / group_size),
        w((const device uint8_t*)w_ + first_row * row_bytes + lane * packs * pack_bytes),
        scales(scales_ + first_row * row_groups + lane * num_values / group_size),
        biases(biases_ + first_row * row_groups + lane * num_values / group_size) {}

  // The lane's share of x; returns its sum.
  static METAL_FUNC float load(const device T* x, thread float* values) {
    return load_vector<T, float, num_values, bits>(x, values);
  }
  // The same of the last `n` values, which may be fewer.
  static METAL_FUNC float load_last(const device T* x, thread float* values, int n) {
    return load_vector_safe<T, float, num_values, bits>(x, values, n);
  }

  METAL_FUNC float dot(int row, const thread float* values, float sum) const thread {
    const float scale = scales[row * row_groups];
    const float bias = biases[row * row_groups];
    return qdot<float, num_values, bits>(w + row * row_bytes, values, scale, bias, sum);
  }
  METAL_FUNC float dot_last(int row, const thread float* values, float sum, int n) const thread {
    const float scale = scales[row * row_groups];
    const float bias = biases[row * row_groups];
    return qdot_safe<float, num_values, bits>(w + row * row_bytes, values, scale, bias, sum, n);
  }

  METAL_FUNC void next() thread {
    w += step / pack_values * pack_bytes;
    scales += step / group_size;
    biases += step / group_size;
  }
};

} // namespace zmlx
