// AddRMSNorm: a residual stream, what is added to it, and the norm of the sum, one launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class AddRMSNorm : public Transformable<AddRMSNorm, FusedPrimitive> {
 public:
  // x, r [.., D], weight [D]  ->  x + r, rms_norm(x + r) * weight
  enum Input { kX, kR, kWeight };
  enum Output { kSum, kNormed };

  AddRMSNorm(mlx::core::Stream stream, float eps) : Transformable(stream), eps_(eps) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override;

  DEFINE_VMAP()
  DEFINE_NAME(AddRMSNorm)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(eps_);
  }

 private:
  float eps_;
};

} // namespace zmlx
