// Attention: softmax(q @ k^T * scale) @ v with grouped key and value heads and an optional causal mask, one launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class Attention : public Transformable<Attention> {
 public:
  enum Input { kQ, kK, kV };

  Attention(mlx::core::Stream stream, float scale, bool causal, Precision precision)
      : Transformable(stream), scale_(scale), causal_(causal), precision_(precision) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_VMAP()
  DEFINE_NAME(Attention)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(scale_, causal_, precision_);
  }

 private:
  float scale_;
  bool causal_;
  Precision precision_;
};

} // namespace zmlx
