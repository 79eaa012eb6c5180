#include "cpu/stock.h"
#include "cpu/step.h"
#include "mlx/ops.h"
#include "short_conv/short_conv.h"
#include "zmlx/fallback.h"
#include "zmlx/invalid.h"

namespace zmlx {

using namespace mlx::core;

std::pair<array, array> short_conv(
    const array& x,
    const array& weight,
    const std::optional<array>& bias,
    const array& state,
    bool gated,
    StreamOrDevice s_) {
  auto s = to_stream(s_);
  auto fail = [](auto&&... args) {
    throw_invalid("short_conv", args...);
  };
  if (weight.ndim() != 3 || weight.shape(2) != 1 || weight.size() == 0) {
    fail("weight should have shape (channels, taps, 1) but received ", weight.shape(), ".");
  }
  int channels = weight.shape(0);
  int taps = weight.shape(1);
  int64_t width = int64_t{gated ? 3 : 1} * channels;
  if (x.ndim() != 3 || x.shape(1) < 1 || x.shape(2) != width) {
    fail("x should have shape (batch, tokens, ", width, ") with a token at least but received ", x.shape(), ".");
  }
  Shape held = {x.shape(0), taps - 1, channels};
  if (state.shape() != held) {
    fail("state should have shape ", held, " but received ", state.shape(), ".");
  }
  if (bias && bias->shape() != Shape{channels}) {
    fail("bias should have shape (", channels, ") but received ", bias->shape(), ".");
  }
  if (state.dtype() != x.dtype() || (bias && bias->dtype() != x.dtype())) {
    fail("x, state and bias should be of one type but received ", x.dtype(), ", ", state.dtype(), bias ? " and another." : ".");
  }
  auto weight_dtype = name_of(weight.dtype());
  const Parameter asked[] = {
      {"channels", channels},
      {"taps", taps},
      {"gated", gated},
      {"bias", bias.has_value()},
      {"weight_dtype", std::string_view(weight_dtype)}};
  require_support("short_conv", {s.device, x.dtype(), Precision::Exact, asked});
  std::vector<array> inputs = {x, weight, state};
  if (bias) {
    inputs.push_back(*bias);
  }
  auto outputs = array::make_arrays(
      {{x.shape(0), x.shape(1), channels}, held},
      {x.dtype(), x.dtype()},
      std::make_shared<ShortConv>(s, gated),
      inputs);
  return {outputs[ShortConv::kY], outputs[ShortConv::kNewState]};
}

namespace {

// The definition, in stock ops, as mlx-lm's lfm2 (gated) and qwen3_next have it.
Fallback stock(bool gated, Stream s) {
  return [=](const std::vector<array>& in) {
    using P = ShortConv;
    auto& weight = in[P::kWeight];
    auto x = in[P::kX];
    std::vector<array> thirds;
    if (gated) {
      thirds = split(x, 3, -1, s);
      x = multiply(thirds[0], thirds[2], s);
    }
    x = concatenate({in[P::kState], x}, 1, s);
    auto y = conv1d(x, weight, 1, 0, 1, weight.shape(0), s);
    if (in.size() > P::kBias) {
      y = add(y, in[P::kBias], s);
    }
    y = gated ? multiply(thirds[1], y, s) : multiply(y, sigmoid(y, s), s);
    int kept = weight.shape(1) - 1;
    auto last = slice(x, {0, x.shape(1) - kept, 0}, x.shape(), s);
    return std::vector<array>{y, last};
  };
}

std::string refuse(const Request& r) {
  auto taps = r.integer("taps");
  r.integer("channels");
  r.flag("gated");
  r.flag("bias");
  if (taps < 2 || taps > cpu::kMaxTaps) {
    return "a convolution over " + std::to_string(taps) + " tokens is not fused, only over 2 to " +
        std::to_string(cpu::kMaxTaps);
  }
  if (r.text("weight_dtype") != name_of(r.dtype)) {
    return "weights of " + std::string(r.text("weight_dtype")) + " with activations of " + name_of(r.dtype) +
        " are not fused";
  }
  return "";
}

std::string refuse_on_this_cpu(const Request& r) {
  auto reason = refuse_on_cpu(r);
  if (reason.empty() && cpu::stock_conv() == cpu::StockConv::Other) {
    return "the BLAS that MLX is linked with adds up convolutions in an order of its own";
  }
  return reason;
}

} // namespace

Fallback ShortConv::fallback(const std::vector<int>&) {
  return stock(gated_, stream());
}

std::vector<Shape> ShortConv::output_shapes(const std::vector<array>& inputs) {
  auto& x = inputs[kX];
  return {{x.shape(0), x.shape(1), inputs[kWeight].shape(0)}, inputs[kState].shape()};
}

Definition define_short_conv() {
  return {
      "short_conv",
      {"channels", "taps", "gated", "bias", "weight_dtype"},
      refuse,
      refuse_on_this_cpu,
      export_row<ShortConv>("ShortConv")};
}

} // namespace zmlx
