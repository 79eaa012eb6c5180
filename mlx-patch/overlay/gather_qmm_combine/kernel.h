// The body of gather_qmm_combine's kernels: kernel.metal has those for affine weights, kernel_fp.metal the others, which MLX's
// headers keep apart.

#pragma once

#include "mlx/backend/metal/kernels/binary_ops.h"

#include "gather_qmm_combine/kernel_params.h"
#include "metal/qmv.h"

namespace zmlx {

static constexpr constant int combine_max_top_k = 31;

// The sum of a column of `count` rows, in the order of MLX's col_reduce_small: eight threads take every eighth row, and the
// first of them adds what the others have. One row is copied.
template <typename T>
METAL_FUNC T column_sum(const threadgroup float* column, int count) {
  if (count == 1) {
    return static_cast<T>(column[0]);
  }
  T total = 0;
  for (int first = 0; first < min(count, 8); first++) {
    T partial = 0;
    for (int i = first; i < count; i += 8) {
      partial = static_cast<T>(column[i * qmv_rows]) + partial;
    }
    total = first == 0 ? partial : partial + total;
  }
  return total;
}

// One expert's share of `qmv_rows` outputs: product, bias and weight, each rounded as stock's ops round them. float holds
// every T.
template <bool fast, typename Rows, typename T>
METAL_FUNC void weighted_rows(
    thread Rows& rows,
    const device T* x,
    const device T* bias,
    const device T* scores,
    int slot,
    threadgroup float* weighted,
    constant GatherQmmCombineParams& params,
    int last_row,
    int lane) {
  float sums[qmv_rows];
  qmv_partial<Rows, 1, fast>(&rows, x, params.K, last_row, lane, sums);
  for (int row = 0; row <= last_row; row++) {
    T y = static_cast<T>(simd_sum(sums[row]));
    if (lane == 0) {
      if (params.has_bias != 0) {
        y = Add()(y, bias[row]);
      }
      weighted[row] = params.wide_scores != 0
          ? static_cast<float>(y) * ((const device float*)scores)[slot]
          : static_cast<float>(Multiply()(y, scores[slot]));
    }
  }
}

} // namespace zmlx
