// ScaleAdd: x * scale + y, one launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class ScaleAdd : public Transformable<ScaleAdd> {
 public:
  enum Input { kX, kY };

  ScaleAdd(mlx::core::Stream stream, float scale) : Transformable(stream), scale_(scale) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(ScaleAdd)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(scale_);
  }

 private:
  float scale_;
};

} // namespace zmlx
