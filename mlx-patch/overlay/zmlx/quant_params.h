// What every quantized op checks before it builds a node: shared, so that messages and rules agree.

#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "mlx/array.h"
#include "mlx/primitives.h"
#include "zmlx/primitives.h"
#include "zmlx/registry.h"

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

// Matrices in a stack [.., N, K].
int64_t num_matrices(const QuantizedWeight& weight);

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

// The parameters "group_size", "bits" and "mode" of a request: the reason why there is no such quantization, or empty.
std::string refuse_quantization(const Request& request);
// What the CPU's kernels for quantized weights do not do.
std::string refuse_quantized_on_cpu(const Request& request);

// What none of the Metal kernels does, and what those for quantized weights do not.
std::string refuse_on_metal(const Request& request);
std::string refuse_quantized_on_metal(const Request& request);

// Why projections of this width stay on stock's launches on Metal, or empty.
std::string refuse_width_on_metal(int64_t width);

// Metal's stock has other kernels, which add in another order, for many rows of one matrix and for many products that are
// sorted by matrix. Throws where they would run; nothing on another backend.
void require_vectors_on_metal(
    std::string_view tag,
    mlx::core::Device device,
    int64_t rows,
    int64_t products,
    int64_t matrices,
    bool sorted);

// The same for one matrix and all rows of `x`, of which there may be one: what stock runs for more hangs on the chip.
void require_vector_on_metal(std::string_view tag, mlx::core::Device device, const array& x);

// Metal's stock adds all of an array, which the one row of a vector is, in another order than rows. Throws for it there;
// nothing on another backend.
void require_rows_on_metal(std::string_view tag, mlx::core::Device device, const array& a);

// Whether it is a GPU of CUDA's.
bool is_cuda(mlx::core::Device device);

// Whether there is a product on CUDA of many lines in `dtype` by such weights [outer, inner].
bool has_grouped_product(mlx::core::Dtype dtype, const QuantParams& params, int inner, int outer);

// Whether so many products in `dtype` with such weights are stock's on CUDA: from eight on it multiplies by matrix units, in an order
// that our kernels for single lines have for mode 'affine' alone.
bool are_stocks_on_cuda(
    mlx::core::Dtype dtype, const QuantParams& params, mlx::core::Device device, int64_t products, int inner, int outer);

// `a` as our Metal kernels read it, one row behind the other; itself on another backend, and where it lies so already.
array in_rows_on_metal(const array& a, mlx::core::Stream s);

} // namespace zmlx
