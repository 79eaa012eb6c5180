// MoERouter: scores of all experts, which of them are chosen, in argpartition's order, and their weights.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

enum class RouterScoring : uint8_t { Softmax, Sigmoid, SoftmaxOfTopK };

class MoERouter : public Transformable<MoERouter, FusedPrimitive> {
 public:
  // Inputs: logits [.., E]; then the selection bias [E] and the scale of each expert [E], of those that there are.
  // Outputs: indices [.., top_k] u32, scores [.., top_k].
  enum Input { kLogits, kOptional };
  enum Output { kIndices, kScores };

  // As RouterParams, with the type of the weights resolved.
  struct State {
    int top_k;
    RouterScoring scoring;
    bool precise;
    bool descending;
    bool in_f32;
    bool has_selection_bias;
    int num_groups;
    int top_k_groups;
    bool normalize;
    float epsilon;
    bool has_expert_scale;
    float scale;
    mlx::core::Dtype::Val weights;
  };

  MoERouter(mlx::core::Stream stream, const State& state) : Transformable(stream), state_(state) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override;

  std::vector<array> vjp(
      const std::vector<array>& primals,
      const std::vector<array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<array>& outputs) override;
  DEFINE_NAME(MoERouter)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  const State& params() const {
    return state_;
  }
  auto state() const {
    return std::make_tuple(
        state_.top_k,
        state_.scoring,
        state_.precise,
        state_.descending,
        state_.in_f32,
        state_.has_selection_bias,
        state_.num_groups,
        state_.top_k_groups,
        state_.normalize,
        state_.epsilon,
        state_.has_expert_scale,
        state_.scale,
        state_.weights);
  }

 private:
  State state_;
};

} // namespace zmlx
