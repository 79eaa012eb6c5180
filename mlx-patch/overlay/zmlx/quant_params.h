// What every quantized op checks before it builds a node: shared, so that messages and rules agree.

#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "zmlx/primitives.h"

namespace zmlx {

using mlx::core::QuantizationMode;

struct QuantParams {
  int group_size;
  int bits;
  QuantizationMode mode;
  bool transpose;

  bool operator==(const QuantParams&) const = default;
  bool affine() const {
    return mode == QuantizationMode::Affine;
  }
};

// Defaults and legal combinations as in MLX. Messages start with "[tag]" and show what arrived.
QuantParams quant_params(
    std::string_view tag,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    bool transpose);
const char* mode_name(QuantizationMode mode);

// Checks one weight against x; returns {inner, outer} dims of the expanded matrix.
std::pair<int, int> check_weight(
    std::string_view tag,
    std::string_view what,
    const array& x,
    const QuantizedWeight& weight,
    const QuantParams& params);

// The dtype stock would compute in: x promoted with scales and biases (affine), or x's own.
mlx::core::Dtype
compute_dtype(std::string_view tag, const array& x, const QuantizedWeight& weight, const QuantParams& params);

// Scales and biases cast to `dtype`, unchanged where they are bytes.
QuantizedWeight cast_weight(
    const QuantizedWeight& weight,
    mlx::core::Dtype dtype,
    const QuantParams& params,
    StreamOrDevice s);

// `indices` as u32, or 0, 1, .. over the batch axes of `a` (MLX's default).
array indices_or_default(
    std::string_view tag,
    const std::optional<array>& indices,
    const array& a,
    StreamOrDevice s);

// Rows of x through one matrix each, without a quantized kernel: dequantize, take, matmul. Slower and rounded as MLX's
// matmul rounds; it has every transformation, which gather_qmm has not (its jvp and vmap are not implemented).
array gather_dequantized(
    const array& x,
    const QuantizedWeight& weight,
    const array& lhs_indices,
    const array& rhs_indices,
    const QuantParams& params,
    StreamOrDevice s);

// Throws std::invalid_argument with `reason` unless the primitive has a kernel for the stream's device.
void require_kernel(
    const char* primitive,
    mlx::core::Stream stream,
    mlx::core::Dtype dtype,
    const QuantParams& params);

// What a Primitive's eval_gpu throws where no kernel is compiled in.
[[noreturn]] void throw_no_gpu_kernel(const char* primitive);

} // namespace zmlx
