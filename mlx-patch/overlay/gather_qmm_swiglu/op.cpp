#include "gather_qmm_swiglu/gather_qmm_swiglu.h"

#include <sstream>

#include "mlx/ops.h"
#include "zmlx/fallback.h"
#include "zmlx/mlx_api.h"

namespace zmlx {

using namespace mlx::core;

namespace {

constexpr const char* kName = "gather_qmm_swiglu";

array silu_multiply(const array& gate, const array& up, Stream s) {
  return multiply(multiply(gate, sigmoid(gate, s), s), up, s);
}

} // namespace

array gather_qmm_swiglu(
    const array& x,
    const QuantizedWeight& gate,
    const QuantizedWeight& up,
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
  auto [inner, outer] = check_weight(kName, "gate", x, gate, params);
  check_weight(kName, "up", x, up, params);
  if (gate.w.shape() != up.w.shape()) {
    std::ostringstream msg;
    msg << "[" << kName << "] gate and up should have the same shape but received " << gate.w.shape() << " and "
        << up.w.shape() << ".";
    throw std::invalid_argument(msg.str());
  }
  auto dtype = compute_dtype(kName, x, gate, params);
  auto up_dtype = compute_dtype(kName, x, up, params);
  if (dtype != up_dtype) {
    std::ostringstream msg;
    msg << "[" << kName << "] gate and up should promote to one type but give " << dtype << " and " << up_dtype
        << ".";
    throw std::invalid_argument(msg.str());
  }
  bool sorted = sorted_indices && (!lhs_indices || !rhs_indices);
  auto lhs = indices_or_default(kName, lhs_indices, x, s);
  auto rhs = indices_or_default(kName, rhs_indices, gate.w, s);
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
      {"bias", false},
      {"activation", "silu"}};
  require_support(kName, {s.device, dtype, precision, asked});
  require_vectors_on_metal(kName, s.device, x.shape(-2), indices[0].size(), num_matrices(gate), sorted);

  auto shape = indices[0].shape();
  shape.push_back(x.shape(-2));
  shape.push_back(outer);
  auto g = cast_weight(gate, dtype, params, s);
  auto u = cast_weight(up, dtype, params, s);
  auto rows = [&](const array& a) { return in_rows_on_metal(a, s); };
  std::vector<array> inputs = {
      rows(astype(x, dtype, s)), indices[0], indices[1], rows(g.w), rows(g.scales), rows(u.w), rows(u.scales)};
  if (params.affine()) {
    inputs.push_back(rows(*g.biases));
    inputs.push_back(rows(*u.biases));
  }
  return array(
      std::move(shape),
      dtype,
      std::make_shared<GatherQMMSwiGLU>(
          s, params.group_size, params.bits, params.mode, transpose, sorted, precision),
      std::move(inputs));
}

namespace {

using Projection = std::function<array(const array& x, const QuantizedWeight& w, const array& lhs, const array& rhs)>;

std::vector<array> compose(const std::vector<array>& in, bool affine, Stream s, const Projection& project) {
  using P = GatherQMMSwiGLU;
  auto biases = [&](int i) { return affine ? std::optional<array>(in[i]) : std::nullopt; };
  auto gate = project(
      in[P::kX], {in[P::kGateW], in[P::kGateScales], biases(P::kGateBiases)}, in[P::kLhsIndices], in[P::kRhsIndices]);
  auto up = project(
      in[P::kX], {in[P::kUpW], in[P::kUpScales], biases(P::kUpBiases)}, in[P::kLhsIndices], in[P::kRhsIndices]);
  return {silu_multiply(gate, up, s)};
}

// The definition: what the primitive computes, in stock ops. It has a vjp with respect to x.
Fallback stock(const QuantParams& p, bool sorted, Stream s) {
  return [=](const std::vector<array>& inputs) {
    return compose(inputs, p.affine(), s, [=](auto& x, auto& w, auto& lhs, auto& rhs) {
      return linked::gather_qmm(
          x, w.w, w.scales, w.biases, lhs, rhs, p.transpose, p.group_size, p.bits, mode_name(p.mode), sorted, s);
    });
  };
}

// The same on dequantized weights: every transformation works.
Fallback dequantized(const QuantParams& p, Stream s) {
  return [=](const std::vector<array>& inputs) {
    return compose(inputs, p.affine(), s, [=](auto& x, auto& w, auto& lhs, auto& rhs) {
      return gather_dequantized(x, w, lhs, rhs, p, s);
    });
  };
}

} // namespace

Fallback GatherQMMSwiGLU::fallback(const std::vector<int>& argnums) {
  bool only_x = argnums.size() == 1 && argnums[0] == kX;
  return only_x ? stock(params_, sorted_indices_, stream()) : dequantized(params_, stream());
}

std::vector<Shape> GatherQMMSwiGLU::output_shapes(const std::vector<array>& inputs) {
  auto shape = inputs[kLhsIndices].shape();
  shape.push_back(inputs[kX].shape(-2));
  shape.push_back(
      params_.transpose ? inputs[kGateW].shape(-2) : inputs[kGateScales].shape(-1) * params_.group_size);
  return {shape};
}

namespace {

std::string refuse(const Request& r) {
  if (auto activation = r.text("activation"); activation != "silu") {
    return "silu of the gate is fused, not " + std::string(activation);
  }
  return r.flag("bias") ? "a bias of the projections is not fused" : refuse_quantization(r);
}

// Experts this wide keep the GPU busy in stock's launches. Others measured a fused kernel of theirs on an M1 Ultra
// (github.com/lablup/mlxcel, issues 276 and 307): +3.5 to 15 % up to a width of 1,792, -6 % at 6,400, -21 % at 14,336.
constexpr int64_t kWidestOnMetal = 4096;

std::string refuse_swiglu_on_metal(const Request& r) {
  if (r.integer("outer") > kWidestOnMetal) {
    return "experts wider than " + std::to_string(kWidestOnMetal) + " are faster in stock's launches";
  }
  return refuse_quantized_on_metal(r);
}

} // namespace

Definition define_gather_qmm_swiglu() {
  return {
      kName,
      {"group_size", "bits", "mode", "transpose", "num_experts", "top_k", "inner", "outer", "bias", "activation"},
      refuse,
      refuse_quantized_on_cpu,
      export_row<GatherQMMSwiGLU>("GatherQMMSwiGLU"),
      refuse_swiglu_on_metal};
}

} // namespace zmlx
