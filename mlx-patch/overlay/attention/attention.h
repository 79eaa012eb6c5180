// Attention: softmax(q @ k^T * scale) @ v with grouped key and value heads and an optional causal mask, one launch, also
// over keys and values of which every batch row has its own.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class Attention : public Transformable<Attention> {
 public:
  // q, then the keys of every cache, then the values of every cache: one for all batch rows, or one for each. Last, if
  // given, how many keys of each cache count.
  enum Input { kQ, kK };
  static int num_caches(const std::vector<array>& inputs) {
    return static_cast<int>(inputs.size() - 1) / 2;
  }
  static const array* lengths(const std::vector<array>& inputs) {
    return inputs.size() % 2 == 0 ? &inputs.back() : nullptr;
  }

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
