// MoERouter: scores of all experts, the top_k of them in argpartition's order, and their (normalised) weights.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

enum class RouterScoring { Softmax, Sigmoid };

class MoERouter : public Transformable<MoERouter, FusedPrimitive> {
 public:
  // Input: logits [.., E]. Outputs: indices [.., top_k] u32, scores [.., top_k] in the type of the logits.
  enum Input { kLogits };
  enum Output { kIndices, kScores };

  MoERouter(mlx::core::Stream stream, int top_k, bool normalize, RouterScoring scoring)
      : Transformable(stream), top_k_(top_k), normalize_(normalize), scoring_(scoring) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override;

  std::vector<array> vjp(
      const std::vector<array>& primals,
      const std::vector<array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<array>& outputs) override;
  DEFINE_NAME(MoERouter)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(top_k_, normalize_, scoring_);
  }

 private:
  int top_k_;
  bool normalize_;
  RouterScoring scoring_;
};

} // namespace zmlx
