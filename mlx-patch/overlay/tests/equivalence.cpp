// Bit for bit against stock MLX, in one process: the whole product of dtypes, modes, bits, group sizes, layouts, row
// counts and ragged sizes; extreme values; strided and broadcast inputs; activations and biases.
//
//   equivalence [--isa NAME] [--threads N] [--seed S] [--dtype bf16|f16|f32] [--quick] [--fast]

#include <sstream>

#include "tests/arrays.h"

using namespace zmlx::tests;

namespace {

struct Config {
  mx::Dtype dtype;
  std::string mode;
  int bits;
  int group;
  bool transpose;
};

std::string describe(const Config& c) {
  std::ostringstream s;
  s << c.dtype << " " << c.mode << " b" << c.bits << " g" << c.group << (c.transpose ? " t" : " n");
  return s.str();
}

zmlx::QuantizedWeight random_weight(const Config& c, mx::Shape batch, int N, int K, Values v) {
  auto w_shape = batch;
  auto s_shape = batch;
  int rows = c.transpose ? N : K;
  int cols = c.transpose ? K : N;
  w_shape.push_back(rows);
  w_shape.push_back(cols * c.bits / 32);
  s_shape.push_back(rows);
  s_shape.push_back(cols / c.group);
  auto w = random_u32(w_shape);
  if (c.mode == "affine") {
    double scale = v == Values::Normal ? 0.02 : 1;
    return {w, random_array(s_shape, c.dtype, v, scale), random_array(s_shape, c.dtype, v, scale * 4)};
  }
  std::vector<uint8_t> s(count(s_shape));
  for (auto& x : s) {
    // among huge ones a few rows have any, so that what one makes infinite stands beside what is not
    if (v == Values::Normal || (v == Values::Huge && rng() % 8 != 0)) {
      x = c.mode == "nvfp4" ? 0x20 + rng() % 32 : 118 + rng() % 8;
    } else {
      x = rng();
    }
  }
  return {w, array(s.data(), s_shape, mx::uint8), std::nullopt};
}

// Biases of both projections of a feed-forward, or none.
struct Biases {
  std::optional<array> gate;
  std::optional<array> up;
};

Biases random_biases(const Config& c, mx::Shape shape, bool some, Values v) {
  auto bias = [&] { return some ? std::optional<array>(random_array(shape, c.dtype, v)) : std::nullopt; };
  return {bias(), bias()};
}

const zmlx::GluParams kActivations[] = {{}, {"gelu_tanh"}, {"clipped_swiglu", 1.702f, 7.0f}, {"clipped_swiglu", 0.5f, 0.25f}};

// As mlx-lm's activations.py and mlx's nn.gelu_approx write them.
array stock_gated(const array& gate, const array& x, const zmlx::GluParams& p) {
  auto number = [&](float v) { return array(v, gate.dtype()); };
  if (p.activation == "gelu_tanh") {
    auto cube = mx::power(gate, number(3));
    auto inner = number(std::sqrt(2 / M_PI)) * (gate + number(0.044715f) * cube);
    return number(0.5f) * gate * (number(1) + mx::tanh(inner)) * x;
  }
  if (p.activation == "clipped_swiglu") {
    auto g = mx::minimum(gate, number(p.limit));
    auto u = mx::clip(x, number(-p.limit), number(p.limit));
    return (u + number(1)) * (g * mx::sigmoid(number(p.alpha) * g));
  }
  return gate * mx::sigmoid(gate) * x;
}

array stock_swiglu(
    const Config& c,
    const array& x,
    const zmlx::QuantizedWeight& g,
    const zmlx::QuantizedWeight& u,
    std::optional<array> lhs,
    std::optional<array> rhs,
    const Biases& biases = {},
    const zmlx::GluParams& glu = {}) {
  auto project = [&](const zmlx::QuantizedWeight& w, const std::optional<array>& bias) {
    auto y = mx::gather_qmm(x, w.w, w.scales, w.biases, lhs, rhs, c.transpose, c.group, c.bits, c.mode);
    return bias ? y + mx::expand_dims(mx::take(*bias, *rhs, 0), -2) : y;
  };
  return stock_gated(project(g, biases.gate), project(u, biases.up), glu);
}

void check_swiglu(const Config& c, Values v, int M, int N, int K, int experts, int tokens, int top_k) {
  auto x = random_array({tokens, 1, M, K}, c.dtype, v);
  auto g = random_weight(c, {experts}, N, K, v);
  auto u = random_weight(c, {experts}, N, K, v);
  auto rhs = random_u32({tokens, top_k}, experts);
  auto lhs = std::optional<array>();
  for (bool biased : {false, true}) {
    auto biases = random_biases(c, {experts, N}, biased, v);
    for (auto& glu : kActivations) {
      std::ostringstream what;
      what << "swiglu " << describe(c) << " v" << int(v) << " M" << M << " N" << N << " K" << K << " E" << experts << " T"
           << tokens << " k" << top_k << " " << glu.activation << glu.limit << (biased ? " biased" : "");
      same(
          what.str(),
          zmlx::gather_qmm_swiglu(
              x, {g, u, biases.gate, biases.up}, glu, lhs, rhs, c.transpose, c.group, c.bits, c.mode, false, zmlx::Precision::Exact),
          stock_swiglu(c, x, g, u, lhs, rhs, biases, glu));
    }
  }
}

void check_mlp(const Config& c, Values v, mx::Shape x_shape, int N) {
  int K = x_shape.back();
  auto x = random_array(x_shape, c.dtype, v);
  auto g = random_weight(c, {}, N, K, v);
  auto u = random_weight(c, {}, N, K, v);
  for (bool biased : {false, true}) {
    auto biases = random_biases(c, {N}, biased, v);
    for (auto& glu : kActivations) {
      std::ostringstream what;
      what << "mlp " << describe(c) << " v" << int(v) << " x" << x_shape << " N" << N << " " << glu.activation << glu.limit
           << (biased ? " biased" : "");
      auto project = [&](const zmlx::QuantizedWeight& w, const std::optional<array>& bias) {
        auto y = mx::quantized_matmul(x, w.w, w.scales, w.biases, true, c.group, c.bits, c.mode);
        return bias ? y + *bias : y;
      };
      same(
          what.str(),
          zmlx::swiglu_mlp(x, {g, u, biases.gate, biases.up}, glu, c.group, c.bits, c.mode, zmlx::Precision::Exact),
          stock_gated(project(g, biases.gate), project(u, biases.up), glu));
    }
  }
}

void check_qmm(const Config& c, Values v, mx::Shape x_shape, mx::Shape batch, int N) {
  std::ostringstream what;
  int K = x_shape.back();
  what << "qmm " << describe(c) << " v" << int(v) << " x" << array(0).shape() << x_shape << " N" << N;
  auto x = random_array(x_shape, c.dtype, v);
  auto w = random_weight(c, batch, N, K, v);
  same(
      what.str(),
      zmlx::quantized_matmul(x, w, c.transpose, c.group, c.bits, c.mode, zmlx::Precision::Exact),
      mx::quantized_matmul(x, w.w, w.scales, w.biases, c.transpose, c.group, c.bits, c.mode));
}

void check_combine(const Config& c, Values v, int N, int K, int experts, int tokens, int top_k, bool f32_scores) {
  auto x = random_array({1, tokens, top_k, 1, K}, c.dtype, v);
  auto w = random_weight(c, {experts}, N, K, v);
  auto rhs = random_u32({1, tokens, top_k}, experts);
  auto scores = random_array({1, tokens, top_k}, f32_scores ? mx::float32 : c.dtype, v, 0.3);
  for (bool biased : {false, true}) {
    std::ostringstream what;
    what << "combine " << describe(c) << " v" << int(v) << " N" << N << " K" << K << " T" << tokens << " k" << top_k
         << (f32_scores ? " f32 scores" : "") << (biased ? " biased" : "");
    auto bias = random_biases(c, {experts, N}, biased, v).gate;
    auto y = mx::gather_qmm(x, w.w, w.scales, w.biases, std::nullopt, rhs, true, c.group, c.bits, c.mode);
    if (bias) {
      y = y + mx::expand_dims(mx::take(*bias, rhs, 0), -2);
    }
    y = mx::squeeze(y, -2);
    auto expected = mx::astype(mx::sum(y * mx::expand_dims(scores, -1), -2), y.dtype());
    same(
        what.str(),
        zmlx::gather_qmm_combine(x, w, bias, rhs, scores, c.group, c.bits, c.mode, zmlx::Precision::Exact),
        expected);
  }
}

// Fast against the dequantized weights in f32; the error allowed is that of one rounding to the result's type.
void check_fast(const Config& c, int M, int N, int K) {
  auto x = random_array({M, K}, c.dtype, Values::Normal);
  auto w = random_weight(c, {}, N, K, Values::Normal);
  if (c.mode == "mxfp8") { // NaN, where stock knows it, has no size
    auto codes = mx::view(w.w, mx::uint8);
    auto nan = mx::equal(mx::bitwise_and(codes, array(0x7f, mx::uint8)), array(0x7f, mx::uint8));
    w.w = mx::view(mx::where(nan, array(0x7e, mx::uint8), codes), mx::uint32);
  }
  auto y = zmlx::quantized_matmul(x, w, c.transpose, c.group, c.bits, c.mode, zmlx::Precision::Fast);
  auto f32 = [](const array& a) { return mx::astype(a, mx::float32); };
  auto dense = c.mode == "affine"
      ? mx::dequantize(w.w, f32(w.scales), f32(*w.biases), c.group, c.bits)
      : mx::dequantize(w.w, w.scales, std::nullopt, c.group, c.bits, c.mode, std::nullopt, mx::float32);
  auto expected = mx::matmul(f32(x), c.transpose ? mx::transpose(dense) : dense);
  auto size = mx::maximum(mx::abs(expected), mx::sqrt(mx::mean(mx::square(expected))));
  auto error = mx::max(mx::abs(f32(y) - expected) / size);
  double tolerance = c.dtype == mx::bfloat16 ? 4e-3 : c.dtype == mx::float16 ? 5.1e-4 : 1e-5;
  cases++;
  compared += y.size();
  double e = error.item<float>();
  if (!(e < tolerance)) {
    failures++;
    std::printf("DIFFERS fast %s M%d N%d K%d: error %g\n", describe(c).c_str(), M, N, K, e);
  }
}

void check_layouts(const Config& c) {
  int N = 96 * (c.group == 128 && !c.transpose ? 4 : c.transpose ? 1 : 2);
  if (!c.transpose) {
    N = N / 128 * 128;
  }
  int K = 256;
  auto E = c.transpose;
  (void)E;
  std::string name = describe(c) + " layout ";
  auto exact = zmlx::Precision::Exact;
  auto run = [&](const std::string& what,
                 const array& x,
                 const zmlx::QuantizedWeight& g,
                 const zmlx::QuantizedWeight& u,
                 std::optional<array> lhs,
                 std::optional<array> rhs) {
    same(
        name + what,
        zmlx::gather_qmm_swiglu(x, {g, u}, {}, lhs, rhs, c.transpose, c.group, c.bits, c.mode, false, exact),
        stock_swiglu(c, x, g, u, lhs, rhs));
  };
  auto g = random_weight(c, {4}, N, K, Values::Normal);
  auto u = random_weight(c, {4}, N, K, Values::Normal);
  auto idx = random_u32({3, 2}, 4);
  auto strided = [&](array a) { // same values, reversed outer storage and padded rows
    auto padded = mx::concatenate({a, a}, -1);
    mx::eval(padded);
    auto start = mx::Shape(a.ndim(), 0);
    return mx::slice(padded, start, a.shape());
  };
  auto x = random_array({3, 1, 2, K}, c.dtype, Values::Normal);
  run("plain", x, g, u, std::nullopt, idx);
  run("padded x", strided(x), g, u, std::nullopt, idx);
  run("transposed x", mx::transpose(random_array({3, 1, K, 2}, c.dtype, Values::Normal), {0, 1, 3, 2}), g, u, std::nullopt, idx);
  run("broadcast x", mx::broadcast_to(random_array({1, 1, 1, K}, c.dtype, Values::Normal), {3, 1, 2, K}), g, u, std::nullopt, idx);
  auto pad_w = [&](const zmlx::QuantizedWeight& w) {
    return zmlx::QuantizedWeight{
        strided(w.w), strided(w.scales), w.biases ? std::optional<array>(strided(*w.biases)) : std::nullopt};
  };
  run("padded w", x, pad_w(g), pad_w(u), std::nullopt, idx);
  auto lhs = random_u32({3, 2}, 3);
  run("lhs and rhs", x, g, u, lhs, idx);
  run("strided indices", x, g, u, mx::transpose(random_u32({2, 3}, 3), {1, 0}), idx);
  run("lhs only", random_array({5, 2, K}, c.dtype, Values::Normal), g, u, random_u32({4}, 5), std::nullopt);
  run("broadcast indices", x, g, u, random_u32({3, 1}, 3), random_u32({1, 2}, 4));
  run("scalar index", random_array({2, K}, c.dtype, Values::Normal), g, u, std::nullopt, random_u32({}, 4));
  run("no rows", random_array({3, 1, 1, K}, c.dtype, Values::Normal), g, u, random_u32({0}, 3), random_u32({0}, 4));
  auto x3 = random_array({4, 3, K}, c.dtype, Values::Normal);
  run("no indices", x3, g, u, std::nullopt, std::nullopt);
  // batch axes
  auto g2 = random_weight(c, {2, 3}, N, K, Values::Normal);
  auto u2 = random_weight(c, {2, 3}, N, K, Values::Normal);
  run("two batch axes", x, g2, u2, std::nullopt, random_u32({3, 2}, 6));
  auto q = [&](const std::string& what, const array& a, const zmlx::QuantizedWeight& w) {
    same(
        name + "qmm " + what,
        zmlx::quantized_matmul(a, w, c.transpose, c.group, c.bits, c.mode, exact),
        mx::quantized_matmul(a, w.w, w.scales, w.biases, c.transpose, c.group, c.bits, c.mode));
  };
  q("batch", x3, g);
  q("broadcast batch", random_array({2, 1, 2, K}, c.dtype, Values::Normal), g2);
  q("one matrix of many", random_array({2, K}, c.dtype, Values::Normal), g);
  auto flat = random_weight(c, {}, N, K, Values::Normal);
  q("vector", random_array({K}, c.dtype, Values::Normal), flat);
  q("padded x", strided(x), flat);
  q("padded w", x, pad_w(flat));
}

// Whether exact products of `dtype` are fused on this processor; fast ones always are.
bool exact(mx::Dtype dtype) {
  const zmlx::Parameter asked[] = {
      {"group_size", 64}, {"bits", 4}, {"mode", "affine"}, {"transpose", true}, {"inner", 64}, {"outer", 64}};
  return zmlx::supports("quantized_matmul", {mx::Device::cpu, dtype, zmlx::Precision::Exact, asked}).fused;
}

} // namespace

int main(int argc, char** argv) {
  bool only_fast = false;
  std::vector<mx::Dtype> dtypes = {mx::bfloat16, mx::float16, mx::float32};
  bool ready = read_options(argc, argv, [&](const std::string& option, const std::string& value) {
    if (option == "--dtype") {
      dtypes = {value == "bf16" ? mx::bfloat16 : value == "f16" ? mx::float16 : mx::float32};
      return 1;
    }
    only_fast = only_fast || option == "--fast";
    return 0;
  });
  if (!ready) {
    return 2;
  }
  std::vector<Config> configs;
  for (auto dtype : dtypes) {
    for (bool transpose : {true, false}) {
      for (int bits : {2, 3, 4, 5, 6, 8}) {
        for (int group : {32, 64, 128}) {
          if (quick && group != 32 << bits % 3) {
            continue;
          }
          configs.push_back({dtype, "affine", bits, group, transpose});
        }
      }
      configs.push_back({dtype, "mxfp4", 4, 32, transpose});
      configs.push_back({dtype, "mxfp8", 8, 32, transpose});
      configs.push_back({dtype, "nvfp4", 4, 16, transpose});
    }
  }
  for (auto& c : configs) {
    for (auto v : {Values::Normal, Values::Huge, Values::Tiny, Values::Extreme}) {
      bool wanted = v == Values::Huge ? c.dtype == mx::bfloat16 && c.transpose : !quick || v == Values::Normal;
      if (only_fast || !exact(c.dtype) || !wanted) {
        continue;
      }
      for (int M : {1, 3}) {
        for (int big : {0, 1}) {
          int N = c.transpose ? (big ? 300 : 37) : c.group * (big ? 5 : 1);
          int K = c.transpose ? c.group * (big ? 9 : 1) : (big ? 77 : 5);
          check_swiglu(c, v, M, N, K, 4, big ? 5 : 1, 3);
        }
      }
      check_qmm(c, v, {1, c.transpose ? 3 * c.group : 50}, {}, c.transpose ? 129 : c.group * 3);
      check_qmm(c, v, {70, c.transpose ? 3 * c.group : 50}, {}, c.transpose ? 129 : c.group * 3);
      if (c.transpose) {
        check_mlp(c, v, {1, 1, 3 * c.group}, 129);
        check_mlp(c, v, {2, 35, c.group}, 40);
        check_combine(c, v, 130, 2 * c.group, 5, 1, 4, false);
        // With f32 scores the sum is f32, and so is its NaN.
        check_combine(c, v == Values::Extreme && c.dtype == mx::float16 ? Values::Tiny : v, 33, c.group, 5, 3, 2, true);
        check_combine(c, v, 64, c.group, 3, 2, 1, false);
      }
    }
    for (int M : {1, 2, 7, 40}) {
      // Even counts: stock's dequantize of nvfp4 takes dwords in fours.
      check_fast(c, M, c.transpose ? 142 : 2 * c.group, c.transpose ? 7 * c.group : 142);
      check_fast(c, M, c.transpose ? 6 : c.group, c.transpose ? c.group : 10);
    }
    if (only_fast || !exact(c.dtype)) {
      continue;
    }
    check_layouts(c);
    if (failures >= 40) {
      break;
    }
  }
  return finish();
}
