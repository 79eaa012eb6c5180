// QuantizedEmbedding: rows of a quantized table, dequantized, one launch.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/quant_params.h"

namespace zmlx {

class QuantizedEmbedding : public Transformable<QuantizedEmbedding> {
 public:
  enum Input { kTokens, kW, kScales, kBiases };

  QuantizedEmbedding(mlx::core::Stream stream, int group_size, int bits)
      : Transformable(stream), group_size_(group_size), bits_(bits) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(QuantizedEmbedding)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  auto state() const {
    return std::make_tuple(group_size_, bits_);
  }

 private:
  int group_size_;
  int bits_;
};

} // namespace zmlx
