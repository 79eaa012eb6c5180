// RecordedAttention: attention of one token over the keys of a buffer, of which data says how many count, and the token's
// own key and value into the buffer, one launch.

#pragma once

#include <tuple>

#include "zmlx/primitives.h"
#include "zmlx/registry.h"

namespace zmlx {

class RecordedAttention : public FusedUnary {
 public:
  // q [B, H, 1, D]; k, v [B, Hkv, 1, D]; keys, values [B, Hkv, T, D]; lengths [B] i32; sinks [H] if given
  enum Input { kQ, kK, kV, kKeys, kValues, kLengths, kSinks };

  RecordedAttention(mlx::core::Stream stream, float scale) : FusedUnary(stream), scale_(scale) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(RecordedAttention)
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override {
    return {inputs[kQ].shape()};
  }
  bool is_equivalent(const mlx::core::Primitive&) const override {
    return false; // it writes
  }
  auto state() const {
    return std::make_tuple(scale_);
  }

 private:
  float scale_;
};

} // namespace zmlx
