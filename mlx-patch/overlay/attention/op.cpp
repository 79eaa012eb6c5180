#include <sstream>

#include "attention/attention.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "mlx/utils.h"
#include "zmlx/fallback.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

namespace {

template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  throw_invalid("attention", args...);
}

void check_cache(const array& q, const std::vector<array>& keys, const std::vector<array>& values, size_t i) {
  size_t caches = keys.size();
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
}

// [B, H, Lq, R] for q [B, H, Lq, D], and [b, 1, Lk, R] for every k [b, Hkv, Lk, D].
void check_rope(const array& q, const std::vector<array>& keys, const AttentionRope& rope) {
  auto shape = q.shape();
  shape.back() = rope.q.ndim() == 4 ? rope.q.shape(3) : 0;
  if (rope.q.shape() != shape) {
    fail("rotated q should have the shape of q but for its last axis; received ", rope.q.shape(), " and ", q.shape(), ".");
  }
  if (rope.keys.size() != keys.size()) {
    fail("expected rotated keys for each of ", keys.size(), " caches but received ", rope.keys.size(), ".");
  }
  for (size_t i = 0; i < keys.size(); i++) {
    auto expected = keys[i].shape();
    expected[1] = 1;
    expected[3] = shape.back();
    if (rope.keys[i].shape() != expected) {
      fail("rotated keys should have shape ", expected, " but received ", rope.keys[i].shape(), ".");
    }
  }
}

} // namespace

array attention(
    const array& q,
    const std::vector<array>& keys,
    const std::vector<array>& values,
    const AttentionOptions& options,
    float scale,
    bool causal,
    Precision precision,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto& [lengths, window, sinks, rope] = options;
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
    check_cache(q, keys, values, i);
    dtype = promote_types(dtype, promote_types(keys[i].dtype(), values[i].dtype()));
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
  if (rope) {
    check_rope(q, keys, *rope);
  }
  auto fits = [&](const array& a) { return promote_types(a.dtype(), dtype) == dtype; };
  if (sinks && (sinks->ndim() != 1 || sinks->shape(0) != q.shape(1) || !fits(*sinks))) {
    fail("sinks should be [", q.shape(1), "] and promote to ", dtype, " but received ", sinks->dtype(), sinks->shape(), ".");
  }
  if (rope && !(fits(rope->q) && std::all_of(rope->keys.begin(), rope->keys.end(), fits))) {
    fail("rotated q and keys should promote to ", dtype, ".");
  }
  const Parameter asked[] = {
      {"num_heads", q.shape(1)},
      {"num_kv_heads", keys[0].shape(1)},
      {"head_dim", q.shape(3)},
      {"value_dim", values[0].shape(3)},
      {"causal", causal},
      {"window", window},
      {"mask", false},
      {"sinks", sinks.has_value()},
      {"rope_dim", rope ? rope->q.shape(3) : 0}};
  require_support("attention", {s.device, dtype, precision, asked});
  std::vector<array> inputs = {astype(q, dtype, s)};
  auto append = [&](const std::vector<array>& arrays) {
    for (auto& a : arrays) {
      inputs.push_back(astype(a, dtype, s));
    }
  };
  append(keys);
  append(values);
  if (rope) {
    append(rope->keys);
    append({rope->q});
  }
  if (sinks) {
    append({*sinks});
  }
  if (lengths) {
    inputs.push_back(astype(*lengths, int32, s));
  }
  Attention::State state = {
      scale, causal, precision, window, rope.has_value(), sinks.has_value(), lengths.has_value()};
  return array(
      {q.shape(0), q.shape(1), q.shape(2), values[0].shape(3)},
      dtype,
      std::make_shared<Attention>(s, state),
      std::move(inputs));
}

namespace {

// Which of `keys` keys the queries of cache b see, [Lq, keys] bool; nothing where the mode "causal" or none says it.
std::optional<array> visible(const Attention::Inputs& in, const Attention::State& p, int b, Stream s) {
  int keys = in.k(b).shape(2);
  int queries = in.q().shape(2);
  if (!in.lengths() && p.window == 0 && !(p.causal && p.has_rope)) {
    return std::nullopt;
  }
  auto last = in.lengths() ? subtract(slice(*in.lengths(), {b}, {b + 1}, s), array(1), s) : array({keys - 1});
  auto rows = arange(queries, int32, s);
  auto upto = p.causal ? add(last, subtract(rows, array(queries - 1), s), s) : broadcast_to(last, {queries}, s);
  upto = expand_dims(upto, 1, s);
  auto columns = arange(keys, int32, s);
  auto seen = less_equal(columns, upto, s);
  return p.window == 0 ? seen : logical_and(seen, less(upto, add(columns, array(std::min(p.window, keys)), s), s), s);
}

// The definition, in stock ops, as mlx-lm's attention blocks have it.
Fallback stock(const Attention::State& p, Stream s) {
  return [=](const std::vector<array>& inputs) {
    Attention::Inputs in(inputs, p);
    auto split_rows = [&](const array& a) {
      return in.caches() > 1 ? split(a, in.caches(), 0, s) : std::vector<array>{a};
    };
    auto queries = split_rows(in.q());
    auto rotated = p.has_rope ? split_rows(in.q_rope()) : std::vector<array>();
    auto sinks = in.sinks() ? std::optional<array>(*in.sinks()) : std::nullopt;
    std::vector<array> out;
    for (int b = 0; b < in.caches(); b++) {
      auto mask = visible(in, p, b, s);
      if (p.has_rope) {
        auto q = multiply(rotated[b], array(p.scale, rotated[b].dtype()), s);
        auto scores = matmul(q, swapaxes(in.k_rope(b), -1, -2, s), s);
        auto lowest = array(finfo(scores.dtype()).min, scores.dtype());
        mask = mask ? where(*mask, scores, lowest, s) : scores;
      }
      auto mode = mask || !p.causal ? "" : "causal";
      out.push_back(fast::scaled_dot_product_attention(
          queries[b], in.k(b), in.v(b), p.scale, mode, mask, sinks, false, s));
    }
    return std::vector<array>{in.caches() > 1 ? concatenate(out, 0, s) : out[0]};
  };
}

} // namespace

Fallback Attention::fallback(const std::vector<int>&) {
  return stock(state_, stream());
}

std::pair<std::vector<array>, std::vector<int>> Attention::vmap(
    const std::vector<array>& inputs,
    const std::vector<int>& axes) {
  if (Inputs(inputs, state_).caches() > 1 || state_.has_lengths || state_.has_sinks) {
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
  auto out =
      array(output_shapes(merged)[0], merged[0].dtype(), std::make_shared<Attention>(s, state_), merged);
  return {{unflatten(out, 0, {mapped, -1}, s)}, {0}};
}

std::vector<Shape> Attention::output_shapes(const std::vector<array>& inputs) {
  auto shape = inputs[kQ].shape();
  shape.back() = Inputs(inputs, state_).v(0).shape(-1);
  return {shape};
}

namespace {

std::string refuse(const Request& r) {
  auto heads = r.integer("num_heads");
  auto kv_heads = r.integer("num_kv_heads");
  auto window = r.integer("window");
  auto rope_dim = r.integer("rope_dim");
  std::ostringstream reason;
  if (kv_heads < 1 || heads % kv_heads != 0) {
    reason << "the heads of q should be a multiple of those of k but received " << heads << " and " << kv_heads;
  } else if (window < 0 || (window > 0 && !r.flag("causal"))) {
    reason << "a window should be positive and the mask causal but received " << window
           << (r.flag("causal") ? "" : " without a causal mask");
  } else if (rope_dim < 0) {
    reason << "rope_dim should not be negative but received " << rope_dim;
  } else if (r.flag("mask")) {
    reason << "a mask in an array is not fused";
  }
  return reason.str();
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
      {"num_heads", "num_kv_heads", "head_dim", "value_dim", "causal", "window", "mask", "sinks", "rope_dim"},
      refuse,
      refuse_cpu,
      export_row<Attention>("Attention"),
      {{"window", 0}, {"sinks", false}, {"rope_dim", 0}}};
}

} // namespace zmlx
