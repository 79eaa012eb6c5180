#include <cmath>
#include "gated_delta/gated_delta.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/fallback.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

std::pair<array, array> gated_delta(
    const array& qkv,
    const array& z,
    const array& b,
    const array& a,
    const array& a_log,
    const array& dt_bias,
    const array& norm,
    const array& state,
    float norm_eps,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    throw_invalid("gated_delta", args...);
  };
  auto expect = [&](const char* name, const array& x, const Shape& shape) {
    if (x.shape() != shape) {
      fail(name, " should have shape ", shape, " but received ", x.shape(), ".");
    }
  };
  if (z.ndim() != 4 || z.shape(1) < 1 || z.shape(2) < 1 || z.shape(3) < 1) {
    fail("z should have shape (batch, tokens, heads, width) with a token at least but received ", z.shape(), ".");
  }
  int batch = z.shape(0);
  int length = z.shape(1);
  int heads = z.shape(2);
  int value_dim = z.shape(3);
  if (state.ndim() != 4 || state.shape(3) < 1) {
    fail("state should have shape (batch, heads, value width, key width) but received ", state.shape(), ".");
  }
  int key_dim = state.shape(3);
  expect("state", state, {batch, heads, value_dim, key_dim});
  int64_t keys = qkv.ndim() == 3 ? qkv.shape(2) - int64_t{heads} * value_dim : 0;
  if (keys < 1 || keys % (int64_t{2} * key_dim) != 0) {
    fail("qkv should have queries and keys of width ", key_dim, " and ", heads, " values of width ", value_dim,
         " but received shape ", qkv.shape(), ".");
  }
  expect("qkv", qkv, {batch, length, qkv.shape(2)});
  expect("b", b, {batch, length, heads});
  expect("a", a, {batch, length, heads});
  expect("a_log", a_log, {heads});
  expect("dt_bias", dt_bias, {heads});
  expect("norm", norm, {value_dim});
  auto dtype = qkv.dtype();
  if (z.dtype() != dtype || b.dtype() != dtype || a.dtype() != dtype) {
    fail("qkv, z, b and a should be of one type but received ", dtype, ", ", z.dtype(), ", ", b.dtype(), " and ",
         a.dtype(), ".");
  }
  if (state.dtype() != float32) {
    fail("state should be float32 but received ", state.dtype(), ".");
  }
  auto dt_dtype = name_of(dt_bias.dtype());
  auto norm_dtype = name_of(norm.dtype());
  const Parameter asked[] = {
      {"num_key_heads", keys / (2 * key_dim)},
      {"num_value_heads", heads},
      {"key_dim", key_dim},
      {"value_dim", value_dim},
      {"dt_bias_dtype", std::string_view(dt_dtype)},
      {"norm_dtype", std::string_view(norm_dtype)}};
  require_support("gated_delta", {s.device, dtype, Precision::Exact, asked});
  auto outputs = array::make_arrays(
      {z.shape(), state.shape()},
      {dtype, float32},
      std::make_shared<GatedDelta>(s, norm_eps),
      {qkv, z, b, a, astype(a_log, float32, s), dt_bias, norm, state});
  return {outputs[GatedDelta::kY], outputs[GatedDelta::kNewState]};
}

GatedDelta::Sizes GatedDelta::sizes(const std::vector<array>& inputs) {
  auto& z = inputs[kZ];
  int key_dim = inputs[kState].shape(3);
  int keys = inputs[kQKV].shape(2) - z.shape(2) * z.shape(3);
  return {z.shape(0), z.shape(1), keys / (2 * key_dim), z.shape(2), key_dim, z.shape(3)};
}

GatedDelta::Scales GatedDelta::scales(int key_dim) {
  double inverse = std::pow(static_cast<double>(key_dim), -0.5);
  double squared = inverse * inverse;
  return {static_cast<float>(1e-6 * squared), static_cast<float>(squared), static_cast<float>(inverse)};
}

namespace {

// The definition, in stock ops, as mlx-lm's gated_delta.py has it where there is no Metal.
Fallback stock(float norm_eps, Stream s) {
  return [=](const std::vector<array>& in) {
    using P = GatedDelta;
    auto n = P::sizes(in);
    auto scales = P::scales(n.key_dim);
    auto dtype = in[P::kQKV].dtype();
    int keys = n.key_heads * n.key_dim;
    auto parts = split(in[P::kQKV], Shape{keys, 2 * keys}, -1, s);
    auto normed = [&](const array& x, float scale) {
      auto y = reshape(x, {n.batch, n.length, n.key_heads, n.key_dim}, s);
      y = multiply(array(scale, dtype), fast::rms_norm(y, std::nullopt, scales.eps, s), s);
      int shared = n.value_heads / n.key_heads;
      return shared > 1 ? repeat(y, shared, -2, s) : y;
    };
    auto q = normed(parts[0], scales.query);
    auto k = normed(parts[1], scales.key);
    auto v = reshape(parts[2], {n.batch, n.length, n.value_heads, n.value_dim}, s);
    auto beta = sigmoid(in[P::kB], s);
    auto shifted = add(in[P::kA], in[P::kDtBias], s);
    auto softplus = logaddexp(shifted, array(0.0f, shifted.dtype()), s);
    auto decay = exp(multiply(negative(exp(in[P::kALog], s), s), softplus, s), s);
    auto memory = in[P::kState];
    std::vector<array> ys;
    for (int t = 0; t < n.length; t++) {
      auto at = [&](const array& x) { return take(x, t, 1, s); };
      auto key = expand_dims(at(k), -2, s);
      auto query = expand_dims(at(q), -2, s);
      memory = multiply(memory, expand_dims(at(decay), {-1, -2}, s), s);
      auto found = sum(multiply(memory, key, s), -1, false, s);
      auto delta = multiply(subtract(at(v), found, s), expand_dims(at(beta), -1, s), s);
      memory = add(memory, multiply(key, expand_dims(delta, -1, s), s), s);
      ys.push_back(astype(sum(multiply(memory, query, s), -1, false, s), dtype, s));
    }
    auto y = stack(ys, 1, s);
    auto gate = astype(in[P::kZ], float32, s);
    gate = multiply(gate, sigmoid(gate, s), s);
    y = fast::rms_norm(y, in[P::kNorm], norm_eps, s);
    y = astype(multiply(gate, astype(y, float32, s), s), dtype, s);
    return std::vector<array>{y, memory};
  };
}

std::string refuse(const Request& r) {
  auto key_heads = r.integer("num_key_heads");
  auto value_heads = r.integer("num_value_heads");
  r.integer("value_dim");
  if (key_heads < 1 || value_heads % key_heads != 0) {
    return "the number of value heads should be a multiple of that of key heads, but received " +
        std::to_string(value_heads) + " and " + std::to_string(key_heads);
  }
  if (r.integer("key_dim") < 2) {
    return "keys of one number are not fused";
  }
  auto dtype = name_of(r.dtype);
  if (r.text("norm_dtype") != dtype) {
    return "a norm of " + std::string(r.text("norm_dtype")) + " with activations of " + dtype + " is not fused";
  }
  if (auto dt = r.text("dt_bias_dtype"); dt != dtype && dt != "float32") {
    return "dt_bias should be float32 or of the type of the activations to be fused, but is " + std::string(dt);
  }
  return "";
}

} // namespace

Fallback GatedDelta::fallback(const std::vector<int>&) {
  return stock(norm_eps_, stream());
}

std::vector<Shape> GatedDelta::output_shapes(const std::vector<array>& inputs) {
  return {inputs[kZ].shape(), inputs[kState].shape()};
}

Definition define_gated_delta() {
  return {
      "gated_delta",
      {"num_key_heads", "num_value_heads", "key_dim", "value_dim", "dt_bias_dtype", "norm_dtype"},
      refuse,
      refuse_on_cpu,
      export_row<GatedDelta>("GatedDelta")};
}

} // namespace zmlx
