// Gated feed-forwards on the CPU: gate and up projections of quantized matrices, joined by an activation.

#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cpu/columns.h"
#include "cpu/operands.h"
#include "zmlx/glu.h"

namespace zmlx::cpu {

// One row's values; the biases are both there or both null. y may be gate or up.
struct GluRow {
  const void* gate;
  const void* up;
  const void* gate_bias;
  const void* up_bias;
  void* y;
};

// y[i] = activation(gate[i] + gate_bias[i]) * (up[i] + up_bias[i]), rounded as the stock ops round it.
void glu_row(DType dtype, const Glu& glu, const GluRow& row, int64_t n);

// y[i] += bias[i]
void add_bias_row(DType dtype, const void* bias, void* y, int64_t n);

// The two projections: their matrices, and for each matrix a row of biases where there are any.
struct GluWeights {
  QuantStack gate;
  QuantStack up;
  std::optional<StridedBlocks> gate_bias;
  std::optional<StridedBlocks> up_bias;
};

// y[route.out] = activation(x @ gate^T) * (x @ up^T) for every route, N columns each, one task for the two blocks of
// columns of a run: neither projection is ever written to memory. The work refers to `weights`, which it shares.
ColumnWork glu_products(
    std::vector<Route> routes,
    std::shared_ptr<const GluWeights> weights,
    const Glu& glu,
    DType dtype,
    Precision precision,
    int64_t K,
    int64_t N,
    uint8_t* y);

} // namespace zmlx::cpu
