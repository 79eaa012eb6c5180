// RecordedAttention: attention of one token over the keys of a buffer, of which data says how many count, and the token's
// own key and value into the buffer. Norm and rotation of query and key are taken in where they were not computed yet.

#pragma once

#include <optional>

#include "qk_norm_rope/qk_norm_rope.h"
#include "zmlx/primitives.h"
#include "zmlx/registry.h"

namespace zmlx {

class RecordedAttention : public FusedUnary {
 public:
  // q [B, H, 1, D]; k, v [B, Hkv, 1, D]; keys, values [B, Hkv, T, D]; lengths [B] i32; sinks [H] if given; with a rotation,
  // where the token stands, the weights of the norms of q and k if there are any, and the frequencies if given
  enum Input { kQ, kK, kV, kKeys, kValues, kLengths, kOptional };

  struct State {
    float scale;
    bool many_keys;
    bool has_sinks;
    std::optional<Ring> ring;
    std::optional<QKNormRope::State> norm_rope;
  };

  RecordedAttention(mlx::core::Stream stream, const State& state) : FusedUnary(stream), state_(state) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(RecordedAttention)
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override {
    auto shape = inputs[kKeys].shape();
    int of_heads = shape[0] * shape[3];
    return {{shape[0], static_cast<int>(inputs[kQ].size()) / of_heads, 1, shape[3]}};
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
