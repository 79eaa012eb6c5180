#include "gather_qmm_combine/gather_qmm_combine.h"

#include "mlx/ops.h"
#include "zmlx/fallback.h"
#include "zmlx/glu.h"
#include "zmlx/invalid.h"
#include "zmlx/mlx_api.h"

namespace zmlx {

using namespace mlx::core;

namespace {

constexpr const char* kName = "gather_qmm_combine";

Fallback stock(const QuantParams& p, bool has_bias, Stream s);

[[noreturn]] void bad_shape(const char* what, const array& got, const array& x) {
  throw_invalid(
      kName, what, " should have the shape of x without its last two axes but received ", got.shape(), " for x with shape ",
      x.shape(), ".");
}

} // namespace

array gather_qmm_combine(
    const array& x,
    const QuantizedWeight& down,
    const std::optional<array>& bias,
    const array& rhs_indices,
    const array& scores,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    Precision precision,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto params = quant_params(kName, group_size, bits, mode, true);
  if (x.ndim() < 3 || x.shape(-2) != 1) {
    throw_invalid(kName, "x should have shape (..., top_k, 1, K) but received ", x.shape(), ".");
  }
  auto [inner, outer] = check_weight(kName, "down", x, down, params);
  auto dtype = compute_dtype(kName, x, down, params);
  Shape routed(x.shape().begin(), x.shape().end() - 2);
  if (rhs_indices.shape() != routed) {
    bad_shape("rhs_indices", rhs_indices, x);
  }
  if (scores.shape() != routed) {
    bad_shape("scores", scores, x);
  }
  if (scores.dtype() != dtype && scores.dtype() != float32) {
    throw_invalid(
        kName, "scores should be float32 or ", dtype, ", the type of the product, but received ", scores.dtype(), ".");
  }
  const Parameter asked[] = {
      {"group_size", params.group_size},
      {"bits", params.bits},
      {"mode", mode_name(params.mode)},
      {"transpose", true},
      {"num_experts", num_matrices(down)},
      {"top_k", x.shape(-3)},
      {"inner", inner},
      {"outer", outer},
      {"bias", bias_name(bias)}};
  require_support(kName, {s.device, dtype, precision, asked});

  auto w = cast_weight(down, dtype, params, s);
  std::vector<array> inputs = {
      astype(x, dtype, s), indices_or_default(kName, rhs_indices, x, s), scores, w.w, w.scales};
  if (params.affine()) {
    inputs.push_back(*w.biases);
  }
  if (bias) {
    inputs.push_back(*check_bias(kName, "down", bias, down, outer, dtype, s));
  }
  for (auto& in : inputs) {
    in = in_rows_on_metal(in, s);
  }
  if (are_stocks_on_cuda(dtype, params, s.device, rhs_indices.size(), inner, outer)) {
    return stock(params, bias.has_value(), s)(inputs)[0];
  }
  Shape shape(routed.begin(), routed.end() - 1);
  shape.push_back(outer);
  return array(
      std::move(shape),
      dtype,
      std::make_shared<GatherQMMCombine>(s, params.group_size, params.bits, params.mode, precision, bias.has_value()),
      std::move(inputs));
}

namespace {

// y [.., k, 1, N] -> the weighted sum over k, [.., N], rounded as mlx-lm's MoE blocks do.
array combine(array y, const std::vector<array>& in, const QuantParams& p, bool has_bias, Stream s) {
  using P = GatherQMMCombine;
  if (has_bias) {
    y = add_bias(y, in[P::bias_at(p)], in[P::kRhsIndices], s);
  }
  y = squeeze(y, -2, s);
  auto weighted = multiply(y, expand_dims(in[P::kScores], -1, s), s);
  return astype(sum(weighted, -2, false, s), y.dtype(), s);
}

std::optional<array> biases_of(const std::vector<array>& in, const QuantParams& p) {
  return p.affine() ? std::optional<array>(in[GatherQMMCombine::kBiases]) : std::nullopt;
}

// The definition: what the primitive computes, in stock ops. It has a vjp with respect to x and scores.
Fallback stock(const QuantParams& p, bool has_bias, Stream s) {
  return [=](const std::vector<array>& in) {
    using P = GatherQMMCombine;
    auto y = linked::gather_qmm(
        in[P::kX],
        in[P::kW],
        in[P::kScales],
        biases_of(in, p),
        std::nullopt,
        in[P::kRhsIndices],
        true,
        p.group_size,
        p.bits,
        mode_name(p.mode),
        false,
        s);
    return std::vector<array>{combine(y, in, p, has_bias, s)};
  };
}

// The same on dequantized weights: every transformation works.
Fallback dequantized(const QuantParams& p, bool has_bias, Stream s) {
  return [=](const std::vector<array>& in) {
    using P = GatherQMMCombine;
    auto lhs = indices_or_default(kName, std::nullopt, in[P::kX], s);
    auto y = gather_dequantized(
        in[P::kX], {in[P::kW], in[P::kScales], biases_of(in, p)}, lhs, in[P::kRhsIndices], p, s);
    return std::vector<array>{combine(y, in, p, has_bias, s)};
  };
}

} // namespace

Fallback GatherQMMCombine::fallback(const std::vector<int>& argnums) {
  bool stock_has_it = !argnums.empty();
  for (int i : argnums) {
    stock_has_it = stock_has_it && (i == kX || i == kScores);
  }
  return stock_has_it ? stock(params_, has_bias_, stream()) : dequantized(params_, has_bias_, stream());
}

std::vector<Shape> GatherQMMCombine::output_shapes(const std::vector<array>& inputs) {
  const auto& routed = inputs[kRhsIndices].shape();
  Shape shape(routed.begin(), routed.end() - 1);
  shape.push_back(inputs[kW].shape(-2));
  return {shape};
}

namespace {

std::string refuse(const Request& r) {
  if (!r.flag("transpose")) {
    return "weights that are not transposed are not fused";
  }
  auto reason = refuse_bias(r);
  return reason.empty() ? refuse_quantization(r) : reason;
}

// From 32 experts on stock adds them in another order. Where a token has one number it adds them one by one, which is
// the same for as many as there are threads that begin.
std::string refuse_combine_on_metal(const Request& r) {
  constexpr int64_t most = 31, threads = 8;
  auto top_k = r.integer("top_k");
  if (top_k > most || (r.integer("outer") == 1 && top_k > threads)) {
    return "stock adds " + std::to_string(top_k) + " experts on Metal in another order than the kernel";
  }
  auto reason = refuse_width_on_metal(r.integer("inner"));
  return reason.empty() ? refuse_quantized_on_metal(r) : reason;
}

} // namespace

Definition define_gather_qmm_combine() {
  return {
      kName,
      {"group_size", "bits", "mode", "transpose", "num_experts", "top_k", "inner", "outer", "bias"},
      refuse,
      refuse_quantized_on_cpu,
      export_row<GatherQMMCombine>("GatherQMMCombine"),
      {{"bias", "none"}},
      refuse_combine_on_metal,
      {"bias"}};
}

} // namespace zmlx
