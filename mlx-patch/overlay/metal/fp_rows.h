// Rows of an mxfp4, mxfp8 or nvfp4 matrix, as MLX's gather_qmv kernels read them.

#pragma once

#include "mlx/backend/metal/kernels/utils.h"
#include "mlx/backend/metal/kernels/steel/gemm/gemm.h"
#include "mlx/backend/metal/kernels/quantized_utils.h"
#include "mlx/backend/metal/kernels/fp_quantized.h"

namespace zmlx {

// As AffineRows (affine_rows.h), without biases: what is the sum of x there is 0 here.
template <typename T, int group_size, int bits, int packs>
struct FpRows {
  using Scale = uint8_t;
  MLX_MTL_CONST int pack_values = get_pack_factor<32, bits>();
  MLX_MTL_CONST int pack_bytes = get_bytes_per_pack<32>();
  MLX_MTL_CONST int num_values = pack_values * packs;
  MLX_MTL_CONST int step = num_values * SIMD_SIZE;

  const int row_bytes;
  const int row_groups;
  const device uint8_t* w;
  const device uint8_t* scales;

  FpRows(const device uint32_t* w_, const device uint8_t* scales_, int K, int first_row, int lane) thread
      : row_bytes(K / pack_values * pack_bytes),
        row_groups(K / group_size),
        w((const device uint8_t*)w_ + first_row * row_bytes + lane * packs * pack_bytes),
        scales(scales_ + first_row * row_groups + lane * num_values / group_size) {}

  static METAL_FUNC float load(const device T* x, thread float* values) {
    load_vector<T, float, num_values>(x, values);
    return 0;
  }
  static METAL_FUNC float load_last(const device T* x, thread float* values, int n) {
    load_vector_safe<T, float, num_values>(x, values, n);
    return 0;
  }

  METAL_FUNC float dot(int row, const thread float* values, float) const thread {
    const float scale = dequantize_scale<float, group_size>(scales[row * row_groups]);
    return qdot<float, num_values, bits>(w + row * row_bytes, values, scale);
  }
  // Rows are whole groups, so a lane has all of its values or none.
  METAL_FUNC float dot_last(int row, const thread float* values, float sum, int) const thread {
    return dot(row, values, sum);
  }

  METAL_FUNC void next() thread {
    w += step / pack_values * pack_bytes;
    scales += step / group_size;
  }
};

} // namespace zmlx
