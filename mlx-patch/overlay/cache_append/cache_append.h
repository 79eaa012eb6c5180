// CacheAppend: one row of a batch's new tokens into that row's cache, one launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/primitives.h"

namespace zmlx {

class CacheAppend : public Transformable<CacheAppend> {
 public:
  // Inputs: buffer [1, H, T, D], tokens [B, H, L, D], lengths [B] i32. Output: the buffer.
  enum Input { kBuffer, kTokens, kLengths };

  CacheAppend(mlx::core::Stream stream, int row) : Transformable(stream), row_(row) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(CacheAppend)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(row_);
  }

 private:
  int row_;
};

} // namespace zmlx
