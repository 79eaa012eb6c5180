#include "gather_qmm_swiglu/gather_qmm_swiglu.h"

#include <sstream>

#include "mlx/ops.h"
#include "zmlx/fallback.h"
#include "zmlx/mlx_api.h"

namespace zmlx {

using namespace mlx::core;

namespace {

constexpr const char* kName = "gather_qmm_swiglu";

Fallback stock(const GatherQMMSwiGLU::State& state, Stream s);

// Made at once: a broadcast of it is one more op for the stream.
array zeros_like_indices(const array& indices) {
  std::vector<uint32_t> zeros(indices.size());
  return array(zeros.begin(), indices.shape(), uint32);
}

// With only axes of length 1 before its own.
bool is_single_matrix(const array& x) {
  return x.ndim() >= 2 && x.size() == static_cast<size_t>(x.shape(-1)) * x.shape(-2);
}

} // namespace

array gather_qmm_swiglu(
    const array& x,
    const GluProjections& projections,
    const GluParams& glu_params,
    std::optional<array> lhs_indices,
    std::optional<array> rhs_indices,
    bool transpose,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    bool sorted_indices,
    Precision precision,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto params = quant_params(kName, group_size, bits, mode, transpose);
  auto& [gate, up, gate_bias, up_bias] = projections;
  auto [inner, outer, dtype] = check_projections(kName, x, projections, params);
  auto glu = glu_of(kName, glu_params);
  bool sorted = sorted_indices && (!lhs_indices || !rhs_indices);
  auto rhs = indices_or_default(kName, rhs_indices, gate.w, s);
  bool one_x = s.device == Device::cpu && !lhs_indices && is_single_matrix(x);
  auto lhs = one_x ? zeros_like_indices(rhs) : indices_or_default(kName, lhs_indices, x, s);
  auto indices = broadcast_arrays({lhs, rhs}, s);
  const Parameter asked[] = {
      {"group_size", params.group_size},
      {"bits", params.bits},
      {"mode", mode_name(params.mode)},
      {"transpose", transpose},
      {"num_experts", num_matrices(gate)},
      {"top_k", indices[0].ndim() > 0 ? indices[0].shape(-1) : 1},
      {"inner", inner},
      {"outer", outer},
      {"bias", bias_name(gate_bias)},
      {"activation", std::string_view(glu_params.activation)}};
  require_support(kName, {s.device, dtype, precision, asked});
  require_vectors_on_metal(kName, s.device, x.shape(-2), indices[0].size(), num_matrices(gate), sorted);

  auto shape = indices[0].shape();
  shape.push_back(x.shape(-2));
  shape.push_back(outer);
  std::vector<array> inputs = {astype(x, dtype, s), indices[0], indices[1]};
  add_projections(inputs, kName, projections, params, outer, dtype, s);
  for (int i = 0; i < static_cast<int>(inputs.size()); i++) {
    if (i != GatherQMMSwiGLU::kLhsIndices && i != GatherQMMSwiGLU::kRhsIndices) {
      inputs[i] = in_rows_on_metal(inputs[i], s);
    }
  }
  GatherQMMSwiGLU::State state = {
      params.group_size,
      params.bits,
      params.mode,
      transpose,
      sorted,
      precision,
      glu.activation,
      glu.alpha,
      glu.limit,
      gate_bias.has_value()};
  if (are_stocks_on_cuda(dtype, params, s.device, static_cast<int64_t>(indices[0].size()) * x.shape(-2), inner, outer)) {
    return stock(state, s)(inputs)[0];
  }
  return array(std::move(shape), dtype, std::make_shared<GatherQMMSwiGLU>(s, state), std::move(inputs));
}

namespace {

using Projection = std::function<array(const array& x, const QuantizedWeight& w, const array& lhs, const array& rhs)>;

std::vector<array>
compose(const std::vector<array>& in, const GatherQMMSwiGLU::State& state, Stream s, const Projection& project) {
  using P = GatherQMMSwiGLU;
  auto params = state.params();
  auto biases = [&](int i) { return params.affine() ? std::optional<array>(in[i]) : std::nullopt; };
  auto projected = [&](int w, int scales, int quant_biases, int bias) {
    auto y = project(in[P::kX], {in[w], in[scales], biases(quant_biases)}, in[P::kLhsIndices], in[P::kRhsIndices]);
    return state.has_bias ? add_bias(y, in[P::bias_at(params) + bias], in[P::kRhsIndices], s) : y;
  };
  auto gate = projected(P::kGateW, P::kGateScales, P::kGateBiases, 0);
  auto up = projected(P::kUpW, P::kUpScales, P::kUpBiases, 1);
  return {gated(gate, up, state.glu(), s)};
}

// The definition: what the primitive computes, in stock ops. It has a vjp with respect to x.
Fallback stock(const GatherQMMSwiGLU::State& state, Stream s) {
  return [=](const std::vector<array>& inputs) {
    return compose(inputs, state, s, [=](auto& x, auto& w, auto& lhs, auto& rhs) {
      auto p = state.params();
      return linked::gather_qmm(
          x, w.w, w.scales, w.biases, lhs, rhs, p.transpose, p.group_size, p.bits, mode_name(p.mode), state.sorted_indices, s);
    });
  };
}

// The same on dequantized weights: every transformation works.
Fallback dequantized(const GatherQMMSwiGLU::State& state, Stream s) {
  return [=](const std::vector<array>& inputs) {
    return compose(inputs, state, s, [=](auto& x, auto& w, auto& lhs, auto& rhs) {
      return gather_dequantized(x, w, lhs, rhs, state.params(), s);
    });
  };
}

} // namespace

Fallback GatherQMMSwiGLU::fallback(const std::vector<int>& argnums) {
  bool only_x = argnums.size() == 1 && argnums[0] == kX;
  return only_x ? stock(state_, stream()) : dequantized(state_, stream());
}

std::vector<Shape> GatherQMMSwiGLU::output_shapes(const std::vector<array>& inputs) {
  auto shape = inputs[kLhsIndices].shape();
  shape.push_back(inputs[kX].shape(-2));
  shape.push_back(
      state_.transpose ? inputs[kGateW].shape(-2) : inputs[kGateScales].shape(-1) * state_.group_size);
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

std::string refuse_swiglu_on_metal(const Request& r) {
  auto reason = refuse_width_on_metal(r.integer("outer"));
  return reason.empty() ? refuse_quantized_on_metal(r) : reason;
}

} // namespace

Definition define_gather_qmm_swiglu() {
  return {
      kName,
      {"group_size", "bits", "mode", "transpose", "num_experts", "top_k", "inner", "outer", "bias", "activation"},
      refuse,
      refuse_quantized_on_cpu,
      export_row<GatherQMMSwiGLU>("GatherQMMSwiGLU"),
      {{"bias", "none"}, {"activation", "silu"}},
      refuse_swiglu_on_metal,
      {"bias", "activation"}};
}

} // namespace zmlx
