// RecordedAppend: one token's keys and values into their buffers, at a position that is data, one launch.

#pragma once

#include "zmlx/primitives.h"
#include "zmlx/registry.h"

namespace zmlx {

class RecordedAppend : public FusedPrimitive {
 public:
  // k, v [B, Hkv, 1, D]; keys, values [B, Hkv, T, D]; lengths [B] i32. Outputs: the buffers.
  enum Input { kK, kV, kKeys, kValues, kLengths };

  explicit RecordedAppend(mlx::core::Stream stream) : FusedPrimitive(stream) {}

  void eval_cpu(const std::vector<array>& inputs, std::vector<array>& outputs) override;

  DEFINE_NAME(RecordedAppend)
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override {
    return {inputs[kKeys].shape(), inputs[kValues].shape()};
  }
  bool is_equivalent(const mlx::core::Primitive&) const override {
    return false; // it writes
  }
};

} // namespace zmlx
