// FusedRMSNorm: x / sqrt(mean(x^2) + eps) * weight over the last axis, one launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class FusedRMSNorm : public Transformable<FusedRMSNorm> {
 public:
  enum Input { kX, kWeight };

  FusedRMSNorm(mlx::core::Stream stream, float eps) : Transformable(stream), eps_(eps) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_VMAP()
  DEFINE_NAME(FusedRMSNorm)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(eps_);
  }

 private:
  float eps_;
};

} // namespace zmlx
