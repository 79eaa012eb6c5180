#include "zmlx/glu.h"

#include <cmath>
#include <stdexcept>

#include "mlx/ops.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

namespace {

// x · ½ (1 + tanh(√(2/π) (x + 0.044715 x³))), op by op as mlx's nn.gelu_approx.
array gelu_tanh(const array& x, Stream s) {
  auto number = [&](double v) { return array(static_cast<float>(v), x.dtype()); };
  auto cubic = multiply(number(0.044715), power(x, number(3), s), s);
  auto inner = multiply(number(0.7978845608028654), add(x, cubic, s), s);
  return multiply(multiply(number(0.5), x, s), add(number(1), tanh(inner, s), s), s);
}

// As mlx-lm's swiglu_oai.
array clipped_swiglu(const array& gate, const array& up, float alpha, float limit, Stream s) {
  auto number = [&](float v) { return array(v, gate.dtype()); };
  auto g = minimum(gate, number(limit), s);
  auto u = minimum(maximum(up, number(-limit), s), number(limit), s);
  return multiply(add(u, number(1), s), multiply(g, sigmoid(multiply(number(alpha), g, s), s), s), s);
}

} // namespace

Glu glu_of(std::string_view tag, const GluParams& p) {
  if (p.activation == "silu") {
    return {Activation::Silu, 0, 0};
  }
  if (p.activation == "gelu_tanh") {
    return {Activation::GeluTanh, 0, 0};
  }
  if (p.activation == "clipped_swiglu") {
    if (!std::isfinite(p.alpha) || !(p.limit >= 0)) {
      throw_invalid(tag, "alpha should be finite and limit not negative but received ", p.alpha, " and ", p.limit, ".");
    }
    return {Activation::ClippedSwiglu, p.alpha, p.limit};
  }
  throw_invalid(
      tag,
      "Invalid activation '",
      p.activation,
      "'. Known activations are silu, gelu_tanh and clipped_swiglu.");
}

array gated(const array& gate, const array& up, const Glu& glu, Stream s) {
  switch (glu.activation) {
    case Activation::GeluTanh:
      return multiply(gelu_tanh(gate, s), up, s);
    case Activation::ClippedSwiglu:
      return clipped_swiglu(gate, up, glu.alpha, glu.limit, s);
    default:
      return multiply(multiply(gate, sigmoid(gate, s), s), up, s);
  }
}

std::optional<array> check_bias(
    std::string_view tag,
    std::string_view what,
    const std::optional<array>& bias,
    const QuantizedWeight& weight,
    int outer,
    Dtype dtype,
    StreamOrDevice s) {
  if (!bias) {
    return std::nullopt;
  }
  auto shape = weight.w.shape();
  shape.pop_back();
  shape.back() = outer;
  if (bias->shape() != shape) {
    throw_invalid(tag, "The bias of ", what, " should have shape ", shape, " but received ", bias->shape(), ".");
  }
  if (!issubdtype(bias->dtype(), floating) || promote_types(bias->dtype(), dtype) != dtype) {
    throw_invalid(tag, "The bias of ", what, " should promote to ", dtype, " but is ", bias->dtype(), ".");
  }
  return astype(*bias, dtype, s);
}

ProjectionDims check_projections(
    std::string_view tag,
    const array& x,
    const GluProjections& projections,
    const QuantParams& params) {
  auto& [gate, up, gate_bias, up_bias] = projections;
  auto [inner, outer] = check_weight(tag, "gate", x, gate, params);
  check_weight(tag, "up", x, up, params);
  if (gate.w.shape() != up.w.shape()) {
    throw_invalid(tag, "gate and up should have the same shape but received ", gate.w.shape(), " and ", up.w.shape(), ".");
  }
  auto dtype = compute_dtype(tag, x, gate, params);
  auto up_dtype = compute_dtype(tag, x, up, params);
  if (dtype != up_dtype) {
    throw_invalid(tag, "gate and up should promote to one type but give ", dtype, " and ", up_dtype, ".");
  }
  if (gate_bias.has_value() != up_bias.has_value()) {
    throw_invalid(tag, "gate and up should both have a bias or neither, but ", gate_bias ? "gate" : "up", " alone has one.");
  }
  return {inner, outer, dtype};
}

void add_projections(
    std::vector<array>& inputs,
    std::string_view tag,
    const GluProjections& projections,
    const QuantParams& params,
    int outer,
    Dtype dtype,
    StreamOrDevice s) {
  auto gate = cast_weight(projections.gate, dtype, params, s);
  auto up = cast_weight(projections.up, dtype, params, s);
  inputs.insert(inputs.end(), {gate.w, gate.scales, up.w, up.scales});
  if (params.affine()) {
    inputs.insert(inputs.end(), {*gate.biases, *up.biases});
  }
  if (projections.gate_bias) {
    inputs.push_back(*check_bias(tag, "gate", projections.gate_bias, projections.gate, outer, dtype, s));
    inputs.push_back(*check_bias(tag, "up", projections.up_bias, projections.up, outer, dtype, s));
  }
}

array add_bias(const array& y, const array& bias_, const array& indices, Stream s) {
  auto bias = bias_.ndim() == 1 ? expand_dims(bias_, 0, s) : flatten(bias_, 0, -2, s);
  return add(y, expand_dims(take(bias, indices, 0, s), -2, s), s);
}

std::string_view bias_name(const std::optional<array>& bias) {
  if (!bias) {
    return "none";
  }
  return bias->dtype() == float32 ? "float32"
      : bias->dtype() == float16  ? "float16"
      : bias->dtype() == bfloat16 ? "bfloat16"
                                  : "another type";
}

std::string refuse_bias(const Request& r) {
  auto bias = r.text("bias");
  if (bias == "none" || (bias == "float32" && r.dtype == float32)) {
    return "";
  }
  bool narrow = bias == "float16" || bias == "bfloat16";
  if (narrow && (r.dtype == float32 || bias == name_of(r.dtype))) {
    return "";
  }
  return "a bias of " + std::string(bias) + " would widen a product in " + name_of(r.dtype);
}

std::string refuse_activation(const Request& r) {
  auto activation = r.text("activation");
  if (activation == "silu" || activation == "gelu_tanh" || activation == "clipped_swiglu") {
    return "";
  }
  return "silu, gelu_tanh and clipped_swiglu of the gate are fused, not " + std::string(activation);
}

} // namespace zmlx
