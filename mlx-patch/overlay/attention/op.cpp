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
  if (k.shape(1) < 1 || q.shape(1) % k.shape(1) != 0) {
    fail("the heads of q should be a multiple of those of k but received ", q.shape(), " and ", k.shape(), ".");
  }
  auto dtype = result_type(q, k, v);
  if (!issubdtype(dtype, floating)) {
    fail("Received unsupported type ", dtype, ".");
  }
  // The fast path computes in float32 whatever arrives; only stock's order for float32 cannot be repeated.
  auto asked = precision == Precision::Fast && dtype == float32 ? bfloat16 : dtype;
  auto [fused, reason] = supports("attention", s.device, asked, 0, 0, "", true);
  if (!fused) {
    fail(reason, ".");
  }
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

} // namespace zmlx
