#include "mlx/fast.h"
#include "mlx/ops.h"
#include "qk_norm_rope/qk_norm_rope.h"
#include "zmlx/fallback.h"
#include "zmlx/invalid.h"
#include "zmlx/quant_params.h"

namespace zmlx {

using namespace mlx::core;

array qk_norm_rope(
    const array& x,
    int num_heads,
    const std::optional<array>& weight,
    float eps,
    const RopeParams& rope,
    const array& offset,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    throw_invalid("qk_norm_rope", args...);
  };
  if (x.ndim() != 3 && x.ndim() != 4) {
    fail("x should have 3 or 4 dimensions but received shape ", x.shape(), ".");
  }
  if (num_heads < 1 || (x.ndim() == 4 ? x.shape(2) != num_heads : x.shape(2) % num_heads != 0)) {
    fail("x of shape ", x.shape(), " does not split into ", num_heads, " heads.");
  }
  int head_dim = x.ndim() == 4 ? x.shape(3) : x.shape(2) / num_heads;
  if (!issubdtype(x.dtype(), floating)) {
    fail("x should be of a floating type but received ", x.dtype(), ".");
  }
  if (weight && (weight->ndim() != 1 || weight->shape(0) != head_dim)) {
    fail("weight should have shape (", head_dim, ") but received ", weight->shape(), ".");
  }
  if (rope.freqs && (rope.freqs->ndim() != 1 || rope.freqs->shape(0) != rope.dims / 2)) {
    fail("freqs should have shape (", rope.dims / 2, ") but received ", rope.freqs->shape(), ".");
  }
  if (!issubdtype(offset.dtype(), integer)) {
    fail("offset should be an integer but received ", offset.dtype(), ".");
  }
  if (offset.ndim() > 1 || (offset.size() != 1 && offset.size() != static_cast<size_t>(x.shape(0)))) {
    fail("offset should be a scalar or have shape (", x.shape(0), ") but received ", offset.shape(), ".");
  }
  auto dtype = weight ? result_type(x, *weight) : x.dtype();
  const Parameter asked[] = {
      {"num_heads", num_heads},
      {"head_dim", head_dim},
      {"norm", weight.has_value()},
      {"dims", rope.dims},
      {"traditional", rope.traditional},
      {"freqs", rope.freqs.has_value()},
      {"input_scale", static_cast<double>(rope.input_scale)}};
  require_support("qk_norm_rope", {s.device, dtype, Precision::Exact, asked});
  std::vector<array> inputs = {
      astype(x, dtype, s), offset.dtype().size() == 4 ? offset : astype(offset, int32, s)};
  if (weight) {
    inputs.push_back(in_rows_on_metal(astype(*weight, dtype, s), s));
  }
  if (rope.freqs) {
    inputs.push_back(in_rows_on_metal(astype(*rope.freqs, float32, s), s));
  }
  QKNormRope::State state = {
      num_heads,
      weight.has_value(),
      rope.freqs.has_value(),
      weight ? eps : 0.0f,
      rope.dims,
      rope.traditional,
      rope.freqs ? 1.0f : rope.base,
      rope.scale,
      rope.input_scale};
  return array(
      {x.shape(0), num_heads, x.shape(1), head_dim},
      dtype,
      std::make_shared<QKNormRope>(s, state),
      std::move(inputs));
}

namespace {

// The definition, in stock ops, as mlx-lm's attention blocks have it.
Fallback stock(const QKNormRope::State& state, Stream s) {
  return [=](const std::vector<array>& in) {
    auto x = in[QKNormRope::kX];
    int next = QKNormRope::kOptional;
    if (x.ndim() == 3) {
      x = reshape(x, {x.shape(0), x.shape(1), state.num_heads, -1}, s);
    }
    if (state.has_weight) {
      x = fast::rms_norm(x, in[next++], state.eps, s);
    }
    x = transpose(x, {0, 2, 1, 3}, s);
    if (state.input_scale != 1) {
      auto factor = array(state.input_scale, x.dtype());
      auto parts = split(x, Shape{state.dims}, -1, s);
      x = concatenate({multiply(parts[0], factor, s), parts[1]}, -1, s);
    }
    auto freqs = state.has_freqs ? std::optional<array>(in[next]) : std::nullopt;
    auto base = state.has_freqs ? std::nullopt : std::optional<float>(state.base);
    return std::vector<array>{fast::rope(
        x, state.dims, state.traditional, base, state.scale, in[QKNormRope::kOffset], freqs, s)};
  };
}

} // namespace

Fallback QKNormRope::fallback(const std::vector<int>&) {
  return stock(state_, stream());
}

std::pair<std::vector<array>, std::vector<int>> QKNormRope::vmap(
    const std::vector<array>& inputs,
    const std::vector<int>& axes) {
  // rope takes one offset a batch row, so only x may carry the mapped axis: it joins the batch.
  for (size_t i = 1; i < axes.size(); i++) {
    if (axes[i] >= 0) {
      throw std::invalid_argument("[qk_norm_rope] vmap over anything but x is not supported.");
    }
  }
  auto s = stream();
  auto x = moveaxis(inputs[kX], axes[kX], 0, s);
  auto batch = x.shape(0);
  auto chosen = inputs;
  chosen[kX] = flatten(x, 0, 1, s);
  if (inputs[kOffset].size() > 1) {
    chosen[kOffset] = tile(inputs[kOffset], {batch}, s);
  }
  auto y = stock(state_, s)(chosen)[0];
  return {{unflatten(y, 0, {batch, -1}, s)}, {0}};
}

std::vector<Shape> QKNormRope::output_shapes(const std::vector<array>& inputs) {
  auto& x = inputs[kX];
  int head_dim = x.ndim() == 4 ? x.shape(3) : x.shape(2) / state_.num_heads;
  return {{x.shape(0), state_.num_heads, x.shape(1), head_dim}};
}

namespace {

std::string refuse(const Request& r) {
  r.number("input_scale");
  auto dims = r.integer("dims");
  auto head_dim = r.integer("head_dim");
  if (dims <= 0 || dims % 2 != 0 || dims > head_dim) {
    return "dims should be even and between 2 and the head dimension, " + std::to_string(head_dim) + ", but received " +
        std::to_string(dims);
  }
  return "";
}

std::string refuse_rope_on_metal(const Request& r) {
  constexpr int64_t longest = 1024;
  if (r.integer("head_dim") > longest) {
    return "the Metal kernel is for heads of at most " + std::to_string(longest) + " numbers, not " +
        std::to_string(r.integer("head_dim"));
  }
  return refuse_on_metal(r);
}

} // namespace

Definition define_qk_norm_rope() {
  return {
      "qk_norm_rope",
      {"num_heads", "head_dim", "norm", "dims", "traditional", "freqs", "input_scale"},
      refuse,
      refuse_on_cpu,
      export_row<QKNormRope>("QKNormRope"),
      {{"input_scale", 1.0}},
      refuse_rope_on_metal,
      {"input_scale"}};
}

} // namespace zmlx
