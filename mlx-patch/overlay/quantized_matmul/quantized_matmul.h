// QuantizedMatmulRows: x @ w for one quantized matrix or a batch of them, parallel over columns and rows. The stock
// primitive of this name is QuantizedMatmul.

#pragma once

#include <tuple>

#include "zmlx/fallback.h"
#include "zmlx/quant_params.h"

namespace zmlx {

class QuantizedMatmulRows : public Transformable<QuantizedMatmulRows> {
 public:
  // Inputs by name. Then what only some have: in affine mode kBiases; then, on CUDA, a bias [N] of the product.
  enum Input { kX, kW, kScales, kBiases };

  QuantizedMatmulRows(
      mlx::core::Stream stream,
      int group_size,
      int bits,
      QuantizationMode mode,
      bool transpose,
      Precision precision,
      bool has_bias = false)
      : Transformable(stream),
        params_{group_size, bits, mode, transpose},
        precision_(precision),
        has_bias_(has_bias) {}

  void eval_cpu(const std::vector<array>& inputs, array& out) override;

  DEFINE_NAME(QuantizedMatmulRows)
  Fallback fallback(const std::vector<int>& argnums);
  std::vector<mlx::core::Shape> output_shapes(const std::vector<array>& inputs) override;

  const QuantParams& params() const {
    return params_;
  }
  bool has_bias() const {
    return has_bias_;
  }
  static int bias_at(const QuantParams& params) {
    return params.affine() ? kBiases + 1 : kBiases;
  }
  auto state() const {
    return std::make_tuple(
        params_.group_size, params_.bits, params_.mode, params_.transpose, precision_, has_bias_);
  }

 private:
  QuantParams params_;
  Precision precision_;
  bool has_bias_;
};

} // namespace zmlx
