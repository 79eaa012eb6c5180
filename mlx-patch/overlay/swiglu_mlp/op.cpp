#include "swiglu_mlp/swiglu_mlp.h"

#include "mlx/ops.h"
#include "zmlx/available.h"
#include "zmlx/fallback.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

namespace {

constexpr const char* kName = "swiglu_mlp";

// From so many rows of x on a GPU's matrix units have work: they are stock's.
constexpr size_t kMostRowsOnGpu = 8;

Fallback stock(const SwiGLUMLP::State& state, Stream s);

} // namespace

array swiglu_mlp(
    const array& x,
    const GluProjections& projections,
    const GluParams& glu_params,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    Precision precision,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto params = quant_params(kName, group_size, bits, mode, true);
  auto [inner, outer, dtype] = check_projections(kName, x, projections, params);
  if (projections.gate.w.ndim() != 2) {
    throw_invalid(kName, "gate and up should be matrices but received shape ", projections.gate.w.shape(), ".");
  }
  auto glu = glu_of(kName, glu_params);
  const Parameter asked[] = {
      {"group_size", params.group_size},
      {"bits", params.bits},
      {"mode", mode_name(params.mode)},
      {"inner", inner},
      {"outer", outer},
      {"bias", bias_name(projections.gate_bias)},
      {"activation", std::string_view(glu_params.activation)}};
  require_support(kName, {s.device, dtype, precision, asked});
  require_vector_on_metal(kName, s.device, x);

  auto shape = x.shape();
  shape.back() = outer;
  std::vector<array> inputs = {astype(x, dtype, s)};
  add_projections(inputs, kName, projections, params, outer, dtype, s);
  for (auto& in : inputs) {
    in = in_rows_on_metal(in, s);
  }
  SwiGLUMLP::State state = {
      params.group_size,
      params.bits,
      params.mode,
      precision,
      glu.activation,
      glu.alpha,
      glu.limit,
      projections.gate_bias.has_value()};
  if (s.device == Device::gpu && x.size() != 0 && x.size() / x.shape(-1) >= kMostRowsOnGpu) {
    return stock(state, s)(inputs)[0];
  }
  note_available(inputs, s);
  return array(std::move(shape), dtype, std::make_shared<SwiGLUMLP>(s, state), std::move(inputs));
}

namespace {

using Projection = std::function<array(const array& x, const QuantizedWeight& w)>;

std::vector<array>
compose(const std::vector<array>& in, const SwiGLUMLP::State& state, Stream s, const Projection& project) {
  using P = SwiGLUMLP;
  auto params = state.params();
  auto biases = [&](int i) { return params.affine() ? std::optional<array>(in[i]) : std::nullopt; };
  auto projected = [&](int w, int scales, int quant_biases, int bias) {
    auto y = project(in[P::kX], {in[w], in[scales], biases(quant_biases)});
    return state.has_bias ? add(y, in[P::bias_at(params) + bias], s) : y;
  };
  auto gate = projected(P::kGateW, P::kGateScales, P::kGateBiases, 0);
  auto up = projected(P::kUpW, P::kUpScales, P::kUpBiases, 1);
  return {gated(gate, up, state.glu(), s)};
}

// The definition: what the primitive computes, in stock ops. It has a vjp with respect to x.
Fallback stock(const SwiGLUMLP::State& state, Stream s) {
  return [=](const std::vector<array>& inputs) {
    return compose(inputs, state, s, [=](auto& x, auto& w) {
      return mlx::core::quantized_matmul(
          x, w.w, w.scales, w.biases, true, state.group_size, state.bits, mode_name(state.mode), s);
    });
  };
}

// The same on dequantized weights: every transformation works.
Fallback dequantized(const SwiGLUMLP::State& state, Stream s) {
  return [=](const std::vector<array>& inputs) {
    return compose(inputs, state, s, [=](auto& x, auto& w) {
      auto dtype = w.biases ? std::nullopt : std::optional<Dtype>(x.dtype());
      auto dense = dequantize(
          w.w, w.scales, w.biases, state.group_size, state.bits, mode_name(state.mode), std::nullopt, dtype, s);
      return matmul(x, swapaxes(dense, -1, -2, s), s);
    });
  };
}

} // namespace

Fallback SwiGLUMLP::fallback(const std::vector<int>& argnums) {
  bool only_x = argnums.size() == 1 && argnums[0] == kX;
  return only_x ? stock(state_, stream()) : dequantized(state_, stream());
}

std::vector<Shape> SwiGLUMLP::output_shapes(const std::vector<array>& inputs) {
  auto shape = inputs[kX].shape();
  shape.back() = inputs[kGateW].shape(-2);
  return {shape};
}

namespace {

std::string refuse(const Request& r) {
  for (auto reason : {refuse_activation(r), refuse_bias(r)}) {
    if (!reason.empty()) {
      return reason;
    }
  }
  return refuse_quantization(r);
}

// Stock has a kernel of its own for short rows, four lanes for each of them.
std::string refuse_mlp_on_metal(const Request& r) {
  auto bits = r.integer("bits"), inner = r.integer("inner");
  if ((inner == 64 || inner == 128) && (bits & (bits - 1)) == 0) {
    return "stock adds rows of " + std::to_string(inner) + " numbers on Metal in another order than the kernel";
  }
  auto reason = refuse_width_on_metal(r.integer("outer"));
  return reason.empty() ? refuse_quantized_on_metal(r) : reason;
}

} // namespace

Definition define_swiglu_mlp() {
  return {
      kName,
      {"group_size", "bits", "mode", "inner", "outer", "bias", "activation"},
      refuse,
      refuse_quantized_on_cpu,
      export_row<SwiGLUMLP>("SwiGLUMLP"),
      {{"bias", "none"}, {"activation", "silu"}},
      refuse_mlp_on_metal,
      {"bias", "activation"}};
}

} // namespace zmlx
