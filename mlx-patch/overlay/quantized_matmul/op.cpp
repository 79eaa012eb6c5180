#include "quantized_matmul/quantized_matmul.h"

#include <sstream>

#include "cuda/tile.h"
#include "mlx/ops.h"
#include "zmlx/available.h"
#include "zmlx/fallback.h"

namespace zmlx {

using namespace mlx::core;

namespace {

constexpr const char* kName = "quantized_matmul";

// From so many rows of x on a GPU's matrix units have work.
constexpr size_t kManyRows = 8;

bool has_many_rows(const array& x) {
  return x.size() != 0 && x.size() / x.shape(-1) >= kManyRows;
}

// One vector for each of as many matrices: eight and more have a kernel on CUDA.
bool is_vector_of_each_head(const array& x, const array& w, const QuantParams& params, Stream s) {
  return is_cuda(s.device) && params.affine() && on_cuda::is_common_width(params.bits) && x.ndim() == 4 &&
      w.ndim() == 3 && x.shape(0) == 1 && x.shape(1) == w.shape(0) && x.shape(2) == 1 && x.shape(1) >= static_cast<int>(kManyRows) &&
      w.shape(1) % 128 == 0;
}

// `a` with its leading axes broadcast to `batch`.
array broadcast_batch(const array& a, const Shape& batch, Stream s) {
  auto shape = batch;
  shape.push_back(a.shape(-2));
  shape.push_back(a.shape(-1));
  return broadcast_to(a, shape, s);
}

Shape leading(const array& a) {
  return Shape(a.shape().begin(), a.shape().end() - 2);
}

} // namespace

array quantized_matmul(
    const array& x_,
    const QuantizedWeight& weight_,
    bool transpose,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    Precision precision,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto params = quant_params(kName, group_size, bits, mode, transpose);
  auto [inner, outer] = check_weight(kName, "weight", x_, weight_, params);
  auto dtype = compute_dtype(kName, x_, weight_, params);
  const Parameter asked[] = {
      {"group_size", params.group_size},
      {"bits", params.bits},
      {"mode", mode_name(params.mode)},
      {"transpose", transpose},
      {"inner", inner},
      {"outer", outer}};
  require_support(kName, {s.device, dtype, precision, asked});
  bool are_stocks = weight_.w.ndim() > 2
      ? !is_vector_of_each_head(x_, weight_.w, params, s)
      : has_many_rows(x_) && !(is_cuda(s.device) && has_grouped_product(dtype, params, inner, outer));
  if (s.device == Device::gpu && are_stocks) {
    return mlx::core::quantized_matmul(
        astype(x_, dtype, s), weight_.w, weight_.scales, weight_.biases, transpose, group_size, bits, mode, s);
  }

  auto x = astype(x_, dtype, s);
  auto weight = cast_weight(weight_, dtype, params, s);
  if (x.ndim() > 2 && weight.w.ndim() > 2) {
    auto batch = broadcast_shapes(leading(x), leading(weight.w));
    x = broadcast_batch(x, batch, s);
    weight.w = broadcast_batch(weight.w, batch, s);
    weight.scales = broadcast_batch(weight.scales, batch, s);
    if (weight.biases) {
      weight.biases = broadcast_batch(*weight.biases, batch, s);
    }
  }
  auto shape = x.shape();
  shape.back() = outer;
  std::vector<array> inputs = {x, weight.w, weight.scales};
  if (params.affine()) {
    inputs.push_back(*weight.biases);
  }
  note_available(inputs, s);
  return array(
      std::move(shape),
      dtype,
      std::make_shared<QuantizedMatmulRows>(
          s, params.group_size, params.bits, params.mode, transpose, precision),
      std::move(inputs));
}

array quantized_linear(
    const array& x,
    const QuantizedWeight& w,
    const array& bias,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    Precision precision,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto y = quantized_matmul(x, w, true, group_size, bits, mode, precision, s);
  auto* product = dynamic_cast<const QuantizedMatmulRows*>(&y.primitive());
  bool of_few_rows = product && w.w.ndim() <= 2 && !has_many_rows(x);
  if (!is_cuda(s.device) || !of_few_rows || bias.dtype() != y.dtype() || bias.shape() != Shape{y.shape(-1)}) {
    return add(y, bias, s);
  }
  auto& params = product->params();
  auto inputs = y.inputs();
  inputs.push_back(bias);
  return array(
      y.shape(),
      y.dtype(),
      std::make_shared<QuantizedMatmulRows>(s, params.group_size, params.bits, params.mode, true, precision, true),
      std::move(inputs));
}

namespace {

std::optional<array> biases_of(const std::vector<array>& in, const QuantParams& p) {
  return p.affine() ? std::optional<array>(in[QuantizedMatmulRows::kBiases]) : std::nullopt;
}

// The definition: what the primitive computes, in a stock op. It has a vjp.
Fallback stock(const QuantParams& p, bool has_bias, Stream s) {
  return [=](const std::vector<array>& in) {
    using P = QuantizedMatmulRows;
    auto y = mlx::core::quantized_matmul(
        in[P::kX],
        in[P::kW],
        in[P::kScales],
        biases_of(in, p),
        p.transpose,
        p.group_size,
        p.bits,
        mode_name(p.mode),
        s);
    return std::vector<array>{has_bias ? add(y, in[P::bias_at(p)], s) : y};
  };
}

// The same on dequantized weights: every transformation works.
Fallback dequantized(const QuantParams& p, bool has_bias, Stream s) {
  return [=](const std::vector<array>& in) {
    using P = QuantizedMatmulRows;
    auto dtype = p.affine() ? std::nullopt : std::optional<Dtype>(in[P::kX].dtype());
    auto w = dequantize(
        in[P::kW],
        in[P::kScales],
        biases_of(in, p),
        p.group_size,
        p.bits,
        mode_name(p.mode),
        std::nullopt,
        dtype,
        s);
    auto y = matmul(in[P::kX], p.transpose ? swapaxes(w, -1, -2, s) : w, s);
    return std::vector<array>{has_bias ? add(y, in[P::bias_at(p)], s) : y};
  };
}

} // namespace

Fallback QuantizedMatmulRows::fallback(const std::vector<int>& argnums) {
  bool only_x = argnums.size() == 1 && argnums[0] == kX;
  return only_x ? stock(params_, has_bias_, stream()) : dequantized(params_, has_bias_, stream());
}

std::vector<Shape> QuantizedMatmulRows::output_shapes(const std::vector<array>& inputs) {
  auto shape = inputs[kX].shape();
  shape.back() =
      params_.transpose ? inputs[kW].shape(-2) : inputs[kScales].shape(-1) * params_.group_size;
  return {shape};
}

Definition define_quantized_matmul() {
  return {
      kName,
      {"group_size", "bits", "mode", "transpose", "inner", "outer"},
      refuse_quantization,
      refuse_quantized_on_cpu,
      export_row<QuantizedMatmulRows>("QuantizedMatmulRows")};
}

} // namespace zmlx
