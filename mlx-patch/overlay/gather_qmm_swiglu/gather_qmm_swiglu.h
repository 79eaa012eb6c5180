// GatherQMMSwiGLU: silu(x @ gate[rhs]) * (x @ up[rhs]) over routed experts, one launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/quant_params.h"

namespace zmlx {

class GatherQMMSwiGLU : public Transformable<GatherQMMSwiGLU> {
 public:
  // Inputs by name. The biases come last because only affine mode has them.
  enum Input { kX, kLhsIndices, kRhsIndices, kGateW, kGateScales, kUpW, kUpScales, kGateBiases, kUpBiases };

  GatherQMMSwiGLU(
      mlx::core::Stream stream,
      int group_size,
      int bits,
      QuantizationMode mode,
      bool transpose,
      bool sorted_indices,
      Precision precision)
      : Transformable(stream),
        params_{group_size, bits, mode, transpose},
        sorted_indices_(sorted_indices),
        precision_(precision) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(GatherQMMSwiGLU)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(
        params_.group_size,
        params_.bits,
        params_.mode,
        params_.transpose,
        sorted_indices_,
        precision_);
  }

 private:
  QuantParams params_;
  bool sorted_indices_;
  Precision precision_;
};

} // namespace zmlx
