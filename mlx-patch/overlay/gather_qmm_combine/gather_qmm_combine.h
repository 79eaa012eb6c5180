// GatherQMMCombine: the down projection of each routed expert and their weighted sum, one launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/quant_params.h"

namespace zmlx {

class GatherQMMCombine : public Transformable<GatherQMMCombine> {
 public:
  // Inputs by name. Then what only some have: in affine mode kBiases; then a bias of the projection.
  //   kX [.., k, 1, K]   kRhsIndices, kScores [.., k]   ->   [.., N]
  enum Input { kX, kRhsIndices, kScores, kW, kScales, kBiases };
  static int bias_at(const QuantParams& params) {
    return params.affine() ? kBiases + 1 : kBiases;
  }

  GatherQMMCombine(
      mlx::core::Stream stream,
      int group_size,
      int bits,
      QuantizationMode mode,
      Precision precision,
      bool has_bias)
      : Transformable(stream),
        params_{group_size, bits, mode, true},
        precision_(precision),
        has_bias_(has_bias) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(GatherQMMCombine)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  const QuantParams& params() const {
    return params_;
  }
  bool has_bias() const {
    return has_bias_;
  }
  auto state() const {
    return std::make_tuple(params_.group_size, params_.bits, params_.mode, precision_, has_bias_);
  }

 private:
  QuantParams params_;
  Precision precision_;
  bool has_bias_;
};

} // namespace zmlx
