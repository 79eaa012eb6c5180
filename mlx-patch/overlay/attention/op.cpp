#include <sstream>

#include "attention/attention.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/fallback.h"

namespace zmlx {

using namespace mlx::core;

array attention(
    const array& q,
    const array& k,
    const array& v,
    float scale,
    bool causal,
    Precision precision,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    std::ostringstream msg;
    msg << "[attention] ";
    (msg << ... << args);
    throw std::invalid_argument(msg.str());
  };
  for (auto* a : {&q, &k, &v}) {
    if (a->ndim() != 4) {
      fail("q, k and v should have 4 dimensions but received shapes ", q.shape(), ", ", k.shape(), ", ", v.shape(), ".");
    }
  }
  if (k.shape(0) != q.shape(0) || v.shape(0) != q.shape(0)) {
    fail("mismatching batch dimension for shapes ", q.shape(), ", ", k.shape(), ", ", v.shape(), ".");
  }
  if (q.shape(3) != k.shape(3)) {
    fail("q and k should have the same last dimension but received ", q.shape(), " and ", k.shape(), ".");
  }
  if (k.shape(1) != v.shape(1) || k.shape(2) != v.shape(2)) {
    fail("k and v should have the same heads and length but received ", k.shape(), " and ", v.shape(), ".");
  }
  auto dtype = result_type(q, k, v);
  if (!issubdtype(dtype, floating)) {
    fail("Received unsupported type ", dtype, ".");
  }
  const Parameter asked[] = {
      {"num_heads", q.shape(1)},
      {"num_kv_heads", k.shape(1)},
      {"head_dim", q.shape(3)},
      {"value_dim", v.shape(3)},
      {"causal", causal},
      {"window", 0},
      {"mask", false},
      {"sinks", false}};
  require_support("attention", {s.device, dtype, precision, asked});
  return array(
      {q.shape(0), q.shape(1), q.shape(2), v.shape(3)},
      dtype,
      std::make_shared<Attention>(s, scale, causal, precision),
      {astype(q, dtype, s), astype(k, dtype, s), astype(v, dtype, s)});
}

namespace {

Fallback stock(float scale, bool causal, Stream s) {
  return [=](const std::vector<array>& in) {
    return std::vector<array>{fast::scaled_dot_product_attention(
        in[Attention::kQ],
        in[Attention::kK],
        in[Attention::kV],
        scale,
        causal ? "causal" : "",
        std::nullopt,
        std::nullopt,
        false,
        s)};
  };
}

} // namespace

Fallback Attention::fallback(const std::vector<int>&) {
  return stock(scale_, causal_, stream());
}

std::pair<std::vector<array>, std::vector<int>> Attention::vmap(
    const std::vector<array>& inputs,
    const std::vector<int>& axes) {
  // The mapped axis joins the batch.
  auto s = stream();
  int mapped = -1;
  for (size_t i = 0; i < inputs.size(); i++) {
    if (axes[i] >= 0) {
      mapped = inputs[i].shape(axes[i]);
    }
  }
  std::vector<array> merged;
  for (size_t i = 0; i < inputs.size(); i++) {
    auto a = inputs[i];
    if (axes[i] >= 0) {
      a = moveaxis(a, axes[i], 0, s);
    } else {
      auto shape = a.shape();
      shape.insert(shape.begin(), mapped);
      a = broadcast_to(expand_dims(a, 0, s), shape, s);
    }
    merged.push_back(flatten(a, 0, 1, s));
  }
  auto out = array(
      output_shapes(merged)[0], merged[0].dtype(), std::make_shared<Attention>(s, scale_, causal_, precision_), merged);
  return {{unflatten(out, 0, {mapped, -1}, s)}, {0}};
}

std::vector<Shape> Attention::output_shapes(const std::vector<array>& inputs) {
  auto shape = inputs[kQ].shape();
  shape.back() = inputs[kV].shape(-1);
  return {shape};
}

namespace {

std::string refuse(const Request& r) {
  auto heads = r.integer("num_heads");
  auto kv_heads = r.integer("num_kv_heads");
  if (kv_heads < 1 || heads % kv_heads != 0) {
    return "the heads of q should be a multiple of those of k but received " + std::to_string(heads) + " and " +
        std::to_string(kv_heads);
  }
  if (r.integer("window") != 0) {
    return "a window of keys is not fused";
  }
  if (r.flag("mask")) {
    return "a mask in an array is not fused";
  }
  return r.flag("sinks") ? "attention sinks are not fused" : "";
}

std::string refuse_cpu(const Request& r) {
  if (r.dtype == float32 && r.precision == Precision::Exact) {
    return "stock multiplies float32 matrices by BLAS, in an order of its own: attention in float32 is fast only";
  }
  return refuse_on_cpu(r);
}

} // namespace

Definition define_attention() {
  return {
      "attention",
      {"num_heads", "num_kv_heads", "head_dim", "value_dim", "causal", "window", "mask", "sinks"},
      refuse,
      refuse_cpu,
      export_row<Attention>("Attention")};
}

} // namespace zmlx
