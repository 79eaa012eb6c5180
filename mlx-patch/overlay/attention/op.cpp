#include <sstream>

#include "attention/attention.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/fallback.h"

namespace zmlx {

using namespace mlx::core;

array attention(
    const array& q,
    const std::vector<array>& keys,
    const std::vector<array>& values,
    const std::optional<array>& lengths,
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
  size_t caches = keys.size();
  if (caches == 0 || values.size() != caches) {
    fail("expected as many keys as values but received ", caches, " and ", values.size(), ".");
  }
  if (q.ndim() != 4) {
    fail("q should have 4 dimensions but received shape ", q.shape(), ".");
  }
  if (caches > 1 && static_cast<int>(caches) != q.shape(0)) {
    fail("expected one cache or one for each batch row of q ", q.shape(), " but received ", caches, ".");
  }
  auto dtype = q.dtype();
  for (size_t i = 0; i < caches; i++) {
    auto& k = keys[i];
    auto& v = values[i];
    if (k.ndim() != 4 || v.ndim() != 4) {
      fail("k and v should have 4 dimensions but received shapes ", k.shape(), ", ", v.shape(), ".");
    }
    int batch = caches > 1 ? 1 : q.shape(0);
    if (k.shape(0) != batch || v.shape(0) != batch) {
      fail("mismatching batch dimension for shapes ", q.shape(), ", ", k.shape(), ", ", v.shape(), ".");
    }
    if (q.shape(3) != k.shape(3)) {
      fail("q and k should have the same last dimension but received ", q.shape(), " and ", k.shape(), ".");
    }
    if (k.shape(1) != v.shape(1) || k.shape(2) != v.shape(2)) {
      fail("k and v should have the same heads and length but received ", k.shape(), " and ", v.shape(), ".");
    }
    if (k.shape(1) != keys[0].shape(1) || v.shape(3) != values[0].shape(3)) {
      fail("caches should have the same heads and widths but received ", k.shape(), " and ", keys[0].shape(), ".");
    }
    if (caches > 1 && k.shape(2) == 0) {
      fail("the cache of batch row ", i, " holds no keys.");
    }
    dtype = promote_types(dtype, promote_types(k.dtype(), v.dtype()));
  }
  if (lengths && (lengths->ndim() != 1 || lengths->shape(0) != static_cast<int>(caches))) {
    fail("expected lengths [", caches, "] but received shape ", lengths->shape(), ".");
  }
  if (lengths && !issubdtype(lengths->dtype(), integer)) {
    fail("expected lengths of integers but received ", lengths->dtype(), ".");
  }
  if (!issubdtype(dtype, floating)) {
    fail("Received unsupported type ", dtype, ".");
  }
  const Parameter asked[] = {
      {"num_heads", q.shape(1)},
      {"num_kv_heads", keys[0].shape(1)},
      {"head_dim", q.shape(3)},
      {"value_dim", values[0].shape(3)},
      {"causal", causal},
      {"window", 0},
      {"mask", false},
      {"sinks", false}};
  require_support("attention", {s.device, dtype, precision, asked});
  std::vector<array> inputs = {astype(q, dtype, s)};
  for (auto* list : {&keys, &values}) {
    for (auto& a : *list) {
      inputs.push_back(astype(a, dtype, s));
    }
  }
  if (lengths) {
    inputs.push_back(astype(*lengths, int32, s));
  }
  return array(
      {q.shape(0), q.shape(1), q.shape(2), values[0].shape(3)},
      dtype,
      std::make_shared<Attention>(s, scale, causal, precision),
      std::move(inputs));
}

namespace {

Fallback stock(float scale, bool causal, Stream s) {
  return [=](const std::vector<array>& in) {
    auto attend = [&](const array& q, const array& k, const array& v, const std::optional<array>& mask) {
      auto mode = mask || !causal ? "" : "causal";
      return fast::scaled_dot_product_attention(q, k, v, scale, mode, mask, std::nullopt, false, s);
    };
    auto& q = in[Attention::kQ];
    auto lengths = Attention::lengths(in);
    int caches = Attention::num_caches(in);
    // which of `keys` rows the queries of cache b see
    auto mask = [&](int b, int keys) -> std::optional<array> {
      if (!lengths) {
        return std::nullopt;
      }
      auto rows = arange(q.shape(2), int32, s);
      auto last = subtract(slice(*lengths, {b}, {b + 1}, s), array(1), s);
      auto upto = causal ? add(last, subtract(rows, array(q.shape(2) - 1), s), s) : broadcast_to(last, rows.shape(), s);
      return less_equal(arange(keys, int32, s), expand_dims(upto, 1, s), s);
    };
    std::vector<array> out;
    auto rows = caches > 1 ? split(q, caches, 0, s) : std::vector<array>{q};
    for (int b = 0; b < caches; b++) {
      auto& k = in[Attention::kK + b];
      out.push_back(attend(rows[b], k, in[Attention::kK + caches + b], mask(b, k.shape(2))));
    }
    return std::vector<array>{caches > 1 ? concatenate(out, 0, s) : out[0]};
  };
}

} // namespace

Fallback Attention::fallback(const std::vector<int>&) {
  return stock(scale_, causal_, stream());
}

std::pair<std::vector<array>, std::vector<int>> Attention::vmap(
    const std::vector<array>& inputs,
    const std::vector<int>& axes) {
  if (num_caches(inputs) > 1 || lengths(inputs)) {
    return fallback_vmap(fallback({}), inputs, axes);
  }
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
  shape.back() = inputs[kK + num_caches(inputs)].shape(-1);
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
