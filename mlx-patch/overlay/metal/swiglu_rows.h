// Gate and up projections of one row of x with what joins them: the body of gather_qmm_swiglu's and swiglu_mlp's kernels.

#pragma once

#include "metal/glu.h"
#include "metal/qmv.h"

namespace zmlx {

// Writes the rows that this simdgroup has of activation(x @ gate^T) * (x @ up^T), with the names that `params` of both have. `rows` are its share of gate and up; y and the biases begin at the
// first of them.
template <bool fast, typename Rows, typename T, typename Params>
METAL_FUNC void swiglu_rows(
    thread Rows* rows,
    const device T* x,
    const device T* gate_bias,
    const device T* up_bias,
    device T* y,
    constant Params& params,
    int first_row,
    int lane) {
  const int last_row = fast ? qmv_rows - 1 : min(params.N - first_row, qmv_rows) - 1;
  float sums[2 * qmv_rows];
  qmv_partial<Rows, 2, fast>(rows, x, params.K, last_row, lane, sums);
  for (int row = 0; row <= last_row; row++) {
    T gate = static_cast<T>(simd_sum(sums[row]));
    T up = static_cast<T>(simd_sum(sums[qmv_rows + row]));
    if (lane == 0) {
      if (params.has_bias != 0) {
        gate = Add()(gate, gate_bias[row]);
        up = Add()(up, up_bias[row]);
      }
      y[row] = gated(gate, up, params.activation, params.alpha, params.limit);
    }
  }
}

// The first row of this simdgroup.
METAL_FUNC int qmv_first_row(uint3 tid, uint simd_gid) {
  return (tid.y * qmv_simdgroups + simd_gid) * qmv_rows;
}

} // namespace zmlx
