// Bit for bit against stock MLX, in one process: short_conv and gated_delta over dtypes, sizes, extreme values, numbers of
// threads and every instruction set of this machine; in steps and all at once; their transformations.
//
//   recurrent_equivalence [--threads N] [--seed S] [--quick]

#include <functional>
#include <sstream>

#include "tests/arrays.h"

using namespace zmlx::tests;

namespace {

using Arrays = std::vector<array>;

template <typename... Args>
std::string text(Args&&... args) {
  std::ostringstream s;
  (s << ... << args);
  return s.str();
}

array at(const array& x, int from, int to, int axis) {
  auto start = mx::Shape(x.ndim(), 0);
  auto stop = x.shape();
  start[axis] = from;
  stop[axis] = to;
  return mx::slice(x, start, stop);
}

// x, weight, state and maybe a bias
Arrays stock_conv(const Arrays& in, bool gated) {
  auto x = in[0];
  int channels = in[1].shape(0);
  int kept = in[1].shape(1) - 1;
  if (gated) {
    x = at(x, 0, channels, 2) * at(x, 2 * channels, 3 * channels, 2);
  }
  x = mx::concatenate({in[2], x}, 1);
  auto y = mx::conv1d(x, in[1], 1, 0, 1, channels);
  if (in.size() > 3) {
    y = y + in[3];
  }
  y = gated ? at(in[0], channels, 2 * channels, 2) * y : y * mx::sigmoid(y);
  return {y, at(x, x.shape(1) - kept, x.shape(1), 1)};
}

Arrays our_conv(const Arrays& in, bool gated) {
  auto bias = in.size() > 3 ? std::optional<array>(in[3]) : std::nullopt;
  auto [y, state] = zmlx::short_conv(in[0], in[1], bias, in[2], gated);
  return {y, state};
}

void same_all(const std::string& what, const Arrays& ours, const Arrays& stock) {
  for (size_t i = 0; i < ours.size(); i++) {
    same(text(what, " output ", i), ours[i], stock[i]);
  }
}

Arrays conv_inputs(mx::Dtype dtype, Values v, int B, int L, int C, int K, bool gated, bool bias) {
  Arrays in = {
      random_array({B, L, gated ? 3 * C : C}, dtype, v),
      random_array({C, K, 1}, dtype),
      random_array({B, K - 1, C}, dtype, v)};
  if (bias) {
    in.push_back(random_array({C}, dtype));
  }
  return in;
}

// Whether short_conv is for this machine: with some BLAS it leaves convolutions to stock.
bool has_conv() {
  try {
    our_conv(conv_inputs(mx::float32, Values::Normal, 1, 1, 1, 2, false, false), false);
    return true;
  } catch (const std::invalid_argument& refused) {
    if (std::string(refused.what()).find("BLAS") == std::string::npos) {
      throw;
    }
    std::printf("%s Not compared.\n", refused.what());
    return false;
  }
}

void check_conv(mx::Dtype dtype, Values v) {
  for (auto [C, K] : {std::pair{64, 3}, {130, 4}, {1, 2}, {17, 7}, {1100, 3}, {33, 16}}) {
    for (auto [B, L] : {std::pair{1, 1}, {1, 2}, {3, 5}, {1, 40}}) {
      for (int kind = 0; kind < 3; kind++) {
        bool gated = kind > 0;
        auto in = conv_inputs(dtype, v, B, L, C, K, gated, kind == 2);
        auto what = text("short_conv ", dtype, " v", int(v), " ", B, "x", L, "x", C, " taps ", K, " kind ", kind);
        same_all(what, our_conv(in, gated), stock_conv(in, gated));
      }
    }
  }
}

constexpr float kNormEps = 1e-5f;

// qkv, z, b, a, a_log, dt_bias, norm, state
Arrays stock_delta(const Arrays& in) {
  auto& z = in[1];
  int B = z.shape(0);
  int L = z.shape(1);
  int H = z.shape(2);
  int dk = in[7].shape(3);
  int values = H * z.shape(3);
  int keys = (in[0].shape(2) - values) / 2;
  auto dtype = in[0].dtype();
  double inverse = std::pow(double(dk), -0.5);
  auto normed = [&](int from, double scale) {
    auto x = mx::reshape(at(in[0], from, from + keys, 2), {B, L, keys / dk, dk});
    x = array(float(scale), dtype) * mx::fast::rms_norm(x, std::nullopt, float(1e-6 * inverse * inverse));
    return mx::repeat(x, H / (keys / dk), -2);
  };
  auto q = normed(0, inverse * inverse);
  auto k = normed(keys, inverse);
  auto v = mx::reshape(at(in[0], 2 * keys, 2 * keys + values, 2), z.shape());
  auto beta = mx::sigmoid(in[2]);
  auto shifted = in[3] + in[5];
  auto softplus = mx::logaddexp(shifted, array(0.0f, shifted.dtype()));
  auto decay = mx::exp(-mx::exp(mx::astype(in[4], mx::float32)) * softplus);
  auto memory = in[7];
  Arrays ys;
  for (int t = 0; t < L; t++) {
    auto now = [&](const array& x) { return mx::squeeze(at(x, t, t + 1, 1), 1); };
    memory = memory * mx::expand_dims(now(decay), {-1, -2});
    auto key = mx::expand_dims(now(k), -2);
    auto found = mx::sum(memory * key, -1);
    auto delta = (now(v) - found) * mx::expand_dims(now(beta), -1);
    memory = memory + key * mx::expand_dims(delta, -1);
    ys.push_back(mx::astype(mx::sum(memory * mx::expand_dims(now(q), -2), -1), dtype));
  }
  auto gate = mx::astype(z, mx::float32);
  auto y = mx::astype(mx::fast::rms_norm(mx::stack(ys, 1), in[6], kNormEps), mx::float32);
  return {mx::astype(gate * mx::sigmoid(gate) * y, dtype), memory};
}

Arrays our_delta(const Arrays& in) {
  auto [y, state] = zmlx::gated_delta(in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], kNormEps);
  return {y, state};
}

Arrays delta_inputs(mx::Dtype dtype, Values v, int B, int L, int Hk, int Hv, int Dk, int Dv, mx::Dtype dt = mx::float32) {
  return {
      random_array({B, L, 2 * Hk * Dk + Hv * Dv}, dtype, v),
      random_array({B, L, Hv, Dv}, dtype, v, 2),
      random_array({B, L, Hv}, dtype, v),
      random_array({B, L, Hv}, dtype, v),
      random_array({Hv}, mx::float32),
      random_array({Hv}, dt),
      random_array({Dv}, dtype),
      random_array({B, Hv, Dv, Dk}, mx::float32, v)};
}

void check_delta(mx::Dtype dtype, Values v) {
  struct {
    int Hk, Hv, Dk, Dv;
  } sizes[] = {{1, 2, 128, 128}, {2, 2, 64, 64}, {1, 3, 2, 1}, {2, 4, 33, 65}, {1, 1, 192, 100}, {1, 2, 16, 200}, {1, 1, 7, 15}};
  for (auto [Hk, Hv, Dk, Dv] : sizes) {
    for (auto [B, L] : {std::pair{1, 1}, {2, 1}, {1, 3}, {2, 5}, {1, quick ? 9 : 131}}) {
      auto in = delta_inputs(dtype, v, B, L, Hk, Hv, Dk, Dv, rng() % 2 ? dtype : mx::float32);
      auto what = text("gated_delta ", dtype, " v", int(v), " ", B, "x", L, " heads ", Hk, "/", Hv, " x ", Dk, "/", Dv);
      auto ours = our_delta(in);
      same_all(what, ours, stock_delta(in));
      // the state as the kernels leave it: held by others, then by nobody else
      in[7] = ours[1];
      ours.clear();
      auto stock = stock_delta(in);
      mx::eval(stock);
      same_all(what + " again", our_delta(in), stock);
      auto in_place = our_delta(in);
      in.clear();
      same_all(what + " in place", in_place, stock);
    }
  }
}

using Fn = std::function<Arrays(const Arrays&)>;

// Gradients and directional derivatives of every input, and vmap over axis 0 of those in `mapped`. MLX has no jvp of
// convolutions.
void check_transforms(
    const std::string& what,
    const Fn& ours,
    const Fn& stock,
    const Arrays& inputs,
    std::vector<int> mapped,
    bool has_jvp) {
  auto y = stock(inputs);
  Arrays cotangents;
  for (auto& out : y) {
    cotangents.push_back(random_array(out.shape(), out.dtype()));
  }
  same_all(what + " vjp", mx::vjp(ours, inputs, cotangents).second, mx::vjp(stock, inputs, cotangents).second);
  if (has_jvp) {
    Arrays tangents;
    for (auto& in : inputs) {
      tangents.push_back(random_array(in.shape(), in.dtype()));
    }
    same_all(what + " jvp", mx::jvp(ours, inputs, tangents).second, mx::jvp(stock, inputs, tangents).second);
  }
  auto batch = inputs;
  std::vector<int> axes(inputs.size(), -1);
  for (int i : mapped) {
    batch[i] = mx::stack({inputs[i], inputs[i] * array(0.5f, inputs[i].dtype())});
    axes[i] = 0;
  }
  for (size_t out = 0; out < y.size(); out++) {
    Arrays rows;
    for (int n = 0; n < 2; n++) {
      auto one = inputs;
      for (int i : mapped) {
        one[i] = mx::take(batch[i], array(n), 0);
      }
      rows.push_back(stock(one)[out]);
    }
    same(text(what, " vmap output ", out), mx::vmap(ours, axes)(batch)[out], mx::stack(rows));
  }
}

} // namespace

int main(int argc, char** argv) {
  if (!read_options(argc, argv, [](auto&, auto&) { return 0; })) {
    return 2;
  }
  bool conv = has_conv();
  for (const char* isa : {"avx512", "avx2", "scalar"}) {
    if (!zmlx::set_cpu_isa(isa)) {
      continue;
    }
    for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
      for (auto v : {Values::Normal, Values::Large, Values::Tiny, Values::Extreme}) {
        if (conv) {
          check_conv(dtype, v);
        }
        check_delta(dtype, v);
      }
    }
    std::printf("%-8s %6d cases so far, %lld values, %d differ\n", isa, cases, (long long)compared, failures);
  }
  for (auto dtype : {mx::float32, mx::bfloat16}) {
    for (bool gated : conv ? std::vector{false, true} : std::vector<bool>{}) {
      check_transforms(
          text("short_conv ", dtype, " gated ", gated),
          [=](const Arrays& in) { return our_conv(in, gated); },
          [=](const Arrays& in) { return stock_conv(in, gated); },
          conv_inputs(dtype, Values::Normal, 2, 4, 6, 3, gated, true),
          {0, 2},
          false);
    }
    auto in = delta_inputs(dtype, Values::Normal, 1, 3, 1, 2, 8, 6);
    check_transforms(text("gated_delta ", dtype), our_delta, stock_delta, in, {0, 7}, true);
  }
  return finish();
}
