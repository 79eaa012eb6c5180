// ShortConv: a causal convolution of each channel along the tokens, with the gates or the activation around it, one
// launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class ShortConv : public Transformable<ShortConv, FusedPrimitive> {
 public:
  // The bias last, where there is one.
  enum Input { kX, kWeight, kState, kBias };
  enum Output { kY, kNewState };

  ShortConv(mlx::core::Stream stream, bool gated) : Transformable(stream), gated_(gated) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override;

  DEFINE_NAME(ShortConv)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(gated_);
  }

 private:
  bool gated_;
};

} // namespace zmlx
