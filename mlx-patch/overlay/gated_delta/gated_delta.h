// GatedDelta: what Gated DeltaNet does between its convolution and its output projection, for all tokens of a step, one
// launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class GatedDelta : public Transformable<GatedDelta, FusedPrimitive> {
 public:
  enum Input { kQKV, kZ, kB, kA, kALog, kDtBias, kNorm, kState };
  enum Output { kY, kNewState };

  GatedDelta(mlx::core::Stream stream, float norm_eps) : Transformable(stream), norm_eps_(norm_eps) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override;

  DEFINE_NAME(GatedDelta)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(norm_eps_);
  }

  // Sizes by the inputs' shapes.
  struct Sizes {
    int batch;
    int length;
    int key_heads;
    int value_heads;
    int key_dim;
    int value_dim;
  };
  static Sizes sizes(const std::vector<array>& inputs);

  // What queries and keys are multiplied by to be normalised: the epsilon of the mean of squares, then the factors. In
  // double as Python has them.
  struct Scales {
    float eps;
    float query;
    float key;
  };
  static Scales scales(int key_dim);

 private:
  float norm_eps_;
};

} // namespace zmlx
