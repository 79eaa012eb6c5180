// GreedyToken: argmax(logits - logsumexp(logits)) over the last axis, one launch.

#pragma once

#include "zmlx/primitives.h"
#include "zmlx/registry.h"

namespace zmlx {

class GreedyToken : public FusedUnary {
 public:
  enum Input { kLogits };

  explicit GreedyToken(mlx::core::Stream stream) : FusedUnary(stream) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_VMAP()
  DEFINE_GRADS()
  DEFINE_NAME(GreedyToken)
  DEFINE_DEFAULT_IS_EQUIVALENT()
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;
};

} // namespace zmlx
