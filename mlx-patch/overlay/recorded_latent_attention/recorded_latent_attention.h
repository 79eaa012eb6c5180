// RecordedLatentAttention: attention of one token over latents in a buffer, of which data says how many count, and the token's
// own latent and rotated key into their buffers. Rotations of queries and key are taken in where they were not computed yet.

#pragma once

#include <optional>

#include "qk_norm_rope/qk_norm_rope.h"
#include "zmlx/primitives.h"
#include "zmlx/registry.h"

namespace zmlx {

class RecordedLatentAttention : public FusedUnary {
 public:
  // q [B, H, 1, R], q_rope [B, H, 1, P]; latent [B, 1, 1, R], k_rope [B, 1, 1, P]; latents [B, 1, T, R], keys [B, 1, T, P];
  // lengths [B] i32. With a rotation, q_rope and k_rope are [B, 1, H, P] and [B, 1, 1, P] before it; then where the token
  // stands, and the frequencies if given
  enum Input { kQ, kQRope, kLatent, kKRope, kLatents, kKeys, kLengths, kOptional };

  struct State {
    float scale;
    std::optional<QKNormRope::State> rope;
  };

  RecordedLatentAttention(mlx::core::Stream stream, const State& state) : FusedUnary(stream), state_(state) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(RecordedLatentAttention)
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override {
    return {inputs[kQ].shape()};
  }
  bool is_equivalent(const mlx::core::Primitive&) const override {
    return false; // it writes
  }
  const State& params() const {
    return state_;
  }

 private:
  State state_;
};

} // namespace zmlx
