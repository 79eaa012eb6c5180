// GatherQMMSwiGLU: activation(x @ gate[rhs]) * (x @ up[rhs]) over routed experts, one launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/glu.h"
#include "zmlx/quant_params.h"

namespace zmlx {

class GatherQMMSwiGLU : public Transformable<GatherQMMSwiGLU> {
 public:
  // Inputs by name. Then what only some have: in affine mode kGateBiases and kUpBiases; then a bias of each projection.
  enum Input { kX, kLhsIndices, kRhsIndices, kGateW, kGateScales, kUpW, kUpScales, kGateBiases, kUpBiases };
  static int bias_at(const QuantParams& params) {
    return params.affine() ? kUpBiases + 1 : kGateBiases;
  }

  struct State {
    int group_size;
    int bits;
    QuantizationMode mode;
    bool transpose;
    bool sorted_indices;
    Precision precision;
    Activation activation;
    float alpha;
    float limit;
    bool has_bias;

    QuantParams params() const {
      return {group_size, bits, mode, transpose};
    }
    Glu glu() const {
      return {activation, alpha, limit};
    }
  };

  GatherQMMSwiGLU(mlx::core::Stream stream, const State& state) : Transformable(stream), state_(state) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(GatherQMMSwiGLU)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  const State& params() const {
    return state_;
  }
  auto state() const {
    return std::make_tuple(
        state_.group_size,
        state_.bits,
        state_.mode,
        state_.transpose,
        state_.sorted_indices,
        state_.precision,
        state_.activation,
        state_.alpha,
        state_.limit,
        state_.has_bias);
  }

 private:
  State state_;
};

} // namespace zmlx
