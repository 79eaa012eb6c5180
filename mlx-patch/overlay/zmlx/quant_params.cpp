#include "zmlx/quant_params.h"

#include <algorithm>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "cpu/stock.h"
#include "cuda/tile.h"
#include "mlx/ops.h"
#include "zmlx/invalid.h"
#include "zmlx/mlx_version.h"

namespace zmlx {

using namespace mlx::core;

namespace {

QuantizationMode parse_mode(std::string_view tag, const std::string& mode) {
  if (mode == "affine") {
    return QuantizationMode::Affine;
  } else if (mode == "mxfp4") {
    return QuantizationMode::Mxfp4;
  } else if (mode == "mxfp8") {
    return QuantizationMode::Mxfp8;
  } else if (mode == "nvfp4") {
    return QuantizationMode::Nvfp4;
  }
  throw_invalid(tag, "Invalid quantization mode '", mode, "'. Known modes are affine, mxfp4, mxfp8 and nvfp4.");
}

} // namespace

const char* mode_name(QuantizationMode mode) {
  switch (mode) {
    case QuantizationMode::Affine:
      return "affine";
    case QuantizationMode::Mxfp4:
      return "mxfp4";
    case QuantizationMode::Mxfp8:
      return "mxfp8";
    case QuantizationMode::Nvfp4:
      return "nvfp4";
  }
  return "unknown";
}

QuantParams quant_params(
    std::string_view tag,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    bool transpose) {
  auto m = parse_mode(tag, mode);
  if (m == QuantizationMode::Affine) {
    int b = bits.value_or(4);
    int g = group_size.value_or(64);
    if (b < 2 || b > 8 || b == 7) {
      throw_invalid(tag, "Quantization bits must be 2, 3, 4, 5, 6 or 8 but received ", b, ".");
    }
    if (g != 32 && g != 64 && g != 128) {
      throw_invalid(tag, "Quantization group size must be 32, 64 or 128 but received ", g, ".");
    }
    return {g, b, m, transpose};
  }
  int want_bits = m == QuantizationMode::Mxfp8 ? 8 : 4;
  int want_group = m == QuantizationMode::Nvfp4 ? 16 : 32;
  int b = bits.value_or(want_bits);
  int g = group_size.value_or(want_group);
  if (b != want_bits || g != want_group) {
    throw_invalid(
        tag,
        "Quantization mode '",
        mode,
        "' has ",
        want_bits,
        " bits and group size ",
        want_group,
        " but received bits=",
        b,
        " and group_size=",
        g,
        ".");
  }
  return {g, b, m, transpose};
}

int64_t num_matrices(const QuantizedWeight& weight) {
  auto& shape = weight.w.shape();
  return std::accumulate(shape.begin(), shape.end() - 2, int64_t{1}, std::multiplies<int64_t>{});
}

std::pair<int, int> check_weight(
    std::string_view tag,
    std::string_view what,
    const array& x,
    const QuantizedWeight& weight,
    const QuantParams& p) {
  const auto& [w, scales, biases] = weight;
  if (w.dtype() != uint32) {
    throw_invalid(tag, "The ", what, " matrix should be uint32 but received ", w.dtype(), ".");
  }
  if (w.ndim() < 2 || scales.ndim() != w.ndim()) {
    throw_invalid(
        tag,
        "The ",
        what,
        " matrix and its scales need the same number of dimensions, at least two, but received shapes ",
        w.shape(),
        " and ",
        scales.shape(),
        ".");
  }
  if (p.affine()) {
    if (!biases) {
      throw_invalid(tag, "Biases must be provided for affine quantization (", what, ").");
    }
    if (scales.shape() != biases->shape()) {
      throw_invalid(
          tag,
          "Scales and biases of ",
          what,
          " should have the same shape. Received scales with shape ",
          scales.shape(),
          " and biases with ",
          biases->shape(),
          ".");
    }
    auto dtype = result_type(scales, *biases);
    if (!issubdtype(dtype, floating)) {
      throw_invalid(
          tag,
          "Only real floating types are supported but scales.dtype() == ",
          scales.dtype(),
          " and biases.dtype() == ",
          biases->dtype(),
          " (",
          what,
          ").");
    }
  } else {
    if (biases) {
      throw_invalid(tag, "Biases must be null for quantization mode '", mode_name(p.mode), "' (", what, ").");
    }
    if (scales.dtype() != uint8) {
      throw_invalid(tag, "Scale type must be uint8 but received type ", scales.dtype(), " (", what, ").");
    }
  }
  if (!std::equal(w.shape().begin(), w.shape().end() - 1, scales.shape().begin())) {
    throw_invalid(
        tag,
        "The ",
        what,
        " matrix and its scales should have the same shape up to the last axis. Received ",
        w.shape(),
        " and ",
        scales.shape(),
        ".");
  }
  if (static_cast<int64_t>(w.shape(-1)) * 32 / p.bits != static_cast<int64_t>(scales.shape(-1)) * p.group_size) {
    throw_invalid(
        tag,
        "The shapes of the ",
        what,
        " matrix and its scales are incompatible based on bits and group_size. w.shape() == ",
        w.shape(),
        " and scales.shape() == ",
        scales.shape(),
        " with group_size=",
        p.group_size,
        " and bits=",
        p.bits,
        ".");
  }
  int packed = scales.shape(-1) * p.group_size;
  int inner = p.transpose ? packed : w.shape(-2);
  int outer = p.transpose ? w.shape(-2) : packed;
  if (x.ndim() < 1 || x.shape(-1) != inner) {
    throw_invalid(
        tag,
        "Last dimension of first input with shape ",
        x.shape(),
        " does not match the expanded quantized ",
        what,
        " matrix (",
        inner,
        ", ",
        outer,
        ") computed from shape ",
        w.shape(),
        " with group_size=",
        p.group_size,
        ", bits=",
        p.bits,
        " and transpose=",
        p.transpose ? "true" : "false",
        ".");
  }
  return {inner, outer};
}

Dtype compute_dtype(
    std::string_view tag,
    const array& x,
    const QuantizedWeight& weight,
    const QuantParams& p) {
  auto dtype = x.dtype();
  if (p.affine()) {
    dtype = promote_types(dtype, result_type(weight.scales, *weight.biases));
  }
  if (dtype != float32 && dtype != float16 && dtype != bfloat16) {
    throw_invalid(
        tag,
        "Only float32, float16 and bfloat16 are supported but x.dtype() == ",
        x.dtype(),
        ", computed in ",
        dtype,
        ".");
  }
  return dtype;
}

QuantizedWeight
cast_weight(const QuantizedWeight& weight, Dtype dtype, const QuantParams& p, StreamOrDevice s) {
  if (!p.affine()) {
    return weight;
  }
  return {weight.w, astype(weight.scales, dtype, s), astype(*weight.biases, dtype, s)};
}

array indices_or_default(
    std::string_view tag,
    const std::optional<array>& indices,
    const array& a,
    StreamOrDevice s) {
  if (a.ndim() < 2) {
    throw_invalid(tag, "Input must have at least two dimensions but got input with shape ", a.shape(), ".");
  }
  if (indices) {
    if (!issubdtype(indices->dtype(), integer)) {
      throw_invalid(tag, "Got indices with invalid dtype ", indices->dtype(), ". Indices must be integral.");
    }
    return astype(*indices, uint32, s);
  }
  Shape shape(a.shape().begin(), a.shape().end() - 2);
  int64_t total = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>{});
  if (total > std::numeric_limits<int>::max()) {
    throw_invalid(tag, "The batch of an input with shape ", a.shape(), " is too large to index.");
  }
  if (total == 1) {
    // no launch for a number that is known
    return reshape(array(0u, uint32), std::move(shape), s);
  }
  return reshape(arange(static_cast<int>(total), uint32, s), std::move(shape), s);
}

array gather_dequantized(
    const array& x,
    const QuantizedWeight& weight,
    const array& lhs_indices,
    const array& rhs_indices,
    const QuantParams& p,
    StreamOrDevice s) {
  auto dtype = p.affine() ? std::nullopt : std::optional<Dtype>(x.dtype());
  auto w = dequantize(
      weight.w, weight.scales, weight.biases, p.group_size, p.bits, mode_name(p.mode), std::nullopt, dtype, s);
  if (p.transpose) {
    w = swapaxes(w, -1, -2, s);
  }
  auto rows = x.ndim() > 2 ? flatten(x, 0, -3, s) : expand_dims(x, 0, s);
  auto matrices = w.ndim() > 2 ? flatten(w, 0, -3, s) : expand_dims(w, 0, s);
  return matmul(take(rows, lhs_indices, 0, s), take(matrices, rhs_indices, 0, s), s);
}

std::string refuse_quantization(const Request& r) {
  try {
    auto bits = static_cast<int>(r.integer("bits"));
    auto group_size = static_cast<int>(r.integer("group_size"));
    quant_params("quantization", group_size, bits, std::string(r.text("mode")), true);
    return "";
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
}

std::string refuse_quantized_on_cpu(const Request& r) {
#if defined(__aarch64__)
  if (r.dtype == float32 && r.precision == Precision::Exact) {
    return "compilers fuse the multiplies and adds of stock's float32 loop on this processor, in places of their own "
           "choosing: products in float32 are fast only";
  }
#endif
  if (auto reason = refuse_on_cpu(r); !reason.empty()) {
    return reason;
  }
  if (r.dtype == float32 && r.precision == Precision::Exact && !cpu::stock_products_round_alike()) {
    return "this build of MLX fuses or reorders the multiplies and adds of its float32 products (compiler flags such as "
           "-march=native or -ffast-math): products in float32 are fast only";
  }
  return "";
}

std::string refuse_on_metal(const Request& r) {
  if (r.dtype != float32 && r.dtype != float16 && r.dtype != bfloat16) {
    std::ostringstream reason;
    reason << "the Metal kernels compute in float32, float16 or bfloat16, not in " << r.dtype;
    return reason.str();
  }
  if (!linked::metal_kernels_known && r.precision == Precision::Exact) {
    return "the Metal kernels have the order of additions of MLX 0.32.2, and another release is linked: they are fast only";
  }
  return "";
}

std::string refuse_quantized_on_metal(const Request& r) {
  auto& all = r.parameters;
  bool transposes = std::any_of(all.begin(), all.end(), [](auto& p) { return p.name == "transpose"; });
  if (transposes && !r.flag("transpose")) {
    return "weights that are not transposed have no Metal kernel";
  }
  return refuse_on_metal(r);
}

std::string refuse_width_on_metal(int64_t width) {
  // Projections this wide keep the GPU busy in stock's launches. Others measured a fused kernel of theirs on an M1 Ultra
  // (github.com/lablup/mlxcel, issues 276 and 307): +3.5 to 15 % up to a width of 1,792, -6 % at 6,400, -21 % at 14,336.
  constexpr int64_t widest = 4096;
  return width > widest ? "projections wider than " + std::to_string(widest) + " are faster in stock's launches" : "";
}

bool has_grouped_product(Dtype dtype, const QuantParams& params, int inner, int outer) {
  return on_cuda::has_grouped_product(
      dtype == bfloat16, params.affine(), params.bits, params.group_size, outer, inner);
}

bool are_stocks_on_cuda(
    Dtype dtype, const QuantParams& params, Device device, int64_t products, int inner, int outer) {
  bool grouped = products >= on_cuda::kGroupedFrom && has_grouped_product(dtype, params, inner, outer);
  return is_cuda(device) && !params.affine() && products >= 8 && !grouped;
}

#ifdef ZMLX_BACKEND_METAL

bool is_cuda(Device) {
  return false;
}

void require_vectors_on_metal(
    std::string_view tag,
    Device device,
    int64_t rows,
    int64_t products,
    int64_t matrices,
    bool sorted) {
  // mlx/backend/metal/quantized.cpp: get_qmv_batch_limit is 6 or more, by chip; GatherQMM::eval_gpu
  constexpr int64_t most_rows = 5;
  bool by_matrix = rows == 1 && products >= 16 && sorted && products / std::max<int64_t>(matrices, 1) >= 4;
  if (device == Device::gpu && (rows > most_rows || by_matrix)) {
    throw_invalid(
        tag,
        rows,
        " rows for each of ",
        products,
        " products are not vectors: stock runs another kernel on Metal, so this has to stay on stock ops.");
  }
}

void require_vector_on_metal(std::string_view tag, Device device, const array& x) {
  if (device == Device::gpu && static_cast<int64_t>(x.size()) != x.shape(-1)) {
    throw_invalid(tag, "x of shape ", x.shape(), " is more than one row: on Metal this has to stay on stock ops.");
  }
}

void require_rows_on_metal(std::string_view tag, Device device, const array& a) {
  if (device == Device::gpu && a.ndim() < 2) {
    throw_invalid(tag, "An array of shape ", a.shape(), " needs one more axis on Metal, where stock adds a whole array in another order.");
  }
}

array in_rows_on_metal(const array& a, Stream s) {
  return s.device == Device::gpu ? contiguous(a, false, s) : a;
}

#else

bool is_cuda(Device device) {
  return device == Device::gpu;
}

void require_vectors_on_metal(std::string_view, Device, int64_t, int64_t, int64_t, bool) {}

void require_vector_on_metal(std::string_view, Device, const array&) {}

void require_rows_on_metal(std::string_view, Device, const array&) {}

array in_rows_on_metal(const array& a, Stream) {
  return a;
}

#endif

} // namespace zmlx
