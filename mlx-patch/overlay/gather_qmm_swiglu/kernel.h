// The body of gather_qmm_swiglu's kernels: kernel.metal has those for affine weights, kernel_fp.metal the others, which MLX's
// headers keep apart.

#pragma once

#include "mlx/backend/metal/kernels/unary_ops.h"
#include "mlx/backend/metal/kernels/binary_ops.h"

#include "gather_qmm_swiglu/kernel_params.h"
#include "metal/qmv.h"

namespace zmlx {

// silu(gate) * up, rounded to T after each of stock's three ops.
template <typename T>
struct Swiglu {
  METAL_FUNC T operator()(T gate, T up, uint, int) const thread {
    const T scaled = Multiply()(gate, Sigmoid()(gate));
    return Multiply()(scaled, up);
  }
};

// OpenAI's: both projections have a bias, the gate is cut off above, up on both sides. The numbers are of T, as scalars are in
// MLX.
template <typename T>
struct ClampedSwiglu {
  const device T* gate_bias;
  const device T* up_bias;
  constant GatherQmmSwigluParams& params;

  METAL_FUNC T operator()(T gate, T up, uint expert, int row) const thread {
    const T limit = static_cast<T>(params.limit);
    gate = Add()(gate, gate_bias[expert * params.gate_bias_stride + row]);
    up = Add()(up, up_bias[expert * params.up_bias_stride + row]);
    gate = Minimum()(gate, limit);
    up = Minimum()(Maximum()(up, static_cast<T>(-params.limit)), limit);
    const T scaled = Multiply()(gate, Sigmoid()(Multiply()(static_cast<T>(params.alpha), gate)));
    return Multiply()(Add()(up, static_cast<T>(1)), scaled);
  }
};

// Writes the rows that this simdgroup has of one product. `rows` are its share of gate and up.
template <bool fast, typename Rows, typename T, typename Activation>
METAL_FUNC void gather_qmm_swiglu_rows(
    thread Rows* rows,
    const device T* x,
    device T* y,
    constant GatherQmmSwigluParams& params,
    Activation activation,
    uint expert,
    int first_row,
    int lane) {
  const int last_row = fast ? qmv_rows - 1 : min(params.N - first_row, qmv_rows) - 1;
  float sums[2 * qmv_rows];
  qmv_partial<Rows, 2, fast>(rows, x, params.K, last_row, lane, sums);
  for (int row = 0; row <= last_row; row++) {
    const T gate = static_cast<T>(simd_sum(sums[row]));
    const T up = static_cast<T>(simd_sum(sums[qmv_rows + row]));
    if (lane == 0) {
      y[row] = activation(gate, up, expert, first_row + row);
    }
  }
}

// The first row of this simdgroup, and whether it has any.
METAL_FUNC int qmv_first_row(uint3 tid, uint simd_gid) {
  return (tid.y * qmv_simdgroups + simd_gid) * qmv_rows;
}

} // namespace zmlx
