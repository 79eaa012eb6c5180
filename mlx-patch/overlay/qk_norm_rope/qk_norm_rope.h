// QKNormRope: rope(factor * rms_norm(split_heads(x))), one launch; without the norm where there is no weight.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class QKNormRope : public Transformable<QKNormRope> {
 public:
  // The weight and the frequencies, if any, follow in this order.
  enum Input { kX, kOffset, kOptional };

  struct State {
    int num_heads;
    bool has_weight;
    bool has_freqs;
    float eps;
    int dims;
    bool traditional;
    float base;
    float scale;
    float input_scale;

    bool operator==(const State&) const = default;
  };

  QKNormRope(mlx::core::Stream stream, const State& state) : Transformable(stream), state_(state) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_VMAP()
  DEFINE_NAME(QKNormRope)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  const State& params() const {
    return state_;
  }
  auto state() const {
    return std::make_tuple(
        state_.num_heads,
        state_.has_weight,
        state_.has_freqs,
        state_.eps,
        state_.dims,
        state_.traditional,
        state_.base,
        state_.scale,
        state_.input_scale);
  }

 private:
  State state_;
};

} // namespace zmlx
