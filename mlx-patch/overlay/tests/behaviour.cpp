// What the primitives do besides computing: errors, transformations, several streams at once, changing thread counts.

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "mlx/mlx.h"
#include "zmlx/primitives.h"

namespace mx = mlx::core;
using mx::array;

namespace {

int failures = 0;

void expect(bool ok, const char* what) {
  std::printf("%s %s\n", ok ? "ok     " : "FAILED ", what);
  failures += !ok;
}

void expect_error(const char* what, const char* part, const std::function<void()>& f) {
  try {
    f();
    std::printf("FAILED  %s: no error\n", what);
    failures++;
  } catch (const std::exception& e) {
    bool ok = std::strstr(e.what(), part);
    std::printf("%s %s: %s\n", ok ? "ok     " : "FAILED ", what, e.what());
    failures += !ok;
  }
}

bool close(const array& a, const array& b, double tolerance = 1e-3) {
  return mx::allclose(mx::astype(a, mx::float32), mx::astype(b, mx::float32), tolerance, tolerance).item<bool>();
}

zmlx::QuantizedWeight quantized(mx::Shape shape, uint64_t seed) {
  auto q = mx::quantize(mx::random::normal(shape, mx::float32, 0.0f, 0.1f, mx::random::key(seed)), 32, 4);
  mx::eval(q);
  return {q[0], q[1], q[2]};
}

} // namespace

int main() {
  auto exact = zmlx::Precision::Exact;
  auto g = quantized({4, 64, 64}, 1);
  auto u = quantized({4, 64, 64}, 2);
  auto d = quantized({4, 32, 64}, 3);
  auto x = mx::random::normal({3, 1, 1, 64}, mx::float32, 0.0f, 1.0f, mx::random::key(4));
  auto rhs = array({0u, 1u, 2u, 3u, 1u, 0u}, {3, 2});
  mx::eval(x, rhs);
  auto swiglu = [&](const array& x, const zmlx::QuantizedWeight& g, const zmlx::QuantizedWeight& u, std::optional<array> rhs, bool t = true, int group = 32, int bits = 4, std::string mode = "affine") {
    return zmlx::gather_qmm_swiglu(x, g, u, std::nullopt, rhs, t, group, bits, mode, false, exact);
  };
  auto stock = [&](const array& x) {
    auto a = mx::gather_qmm(x, g.w, g.scales, g.biases, std::nullopt, rhs, true, 32, 4);
    auto b = mx::gather_qmm(x, u.w, u.scales, u.biases, std::nullopt, rhs, true, 32, 4);
    return a * mx::sigmoid(a) * b;
  };

  expect_error("wrong K", "does not match", [&] { swiglu(mx::zeros({1, 1, 32}), g, u, rhs); });
  expect_error("x without rows", "two dimensions", [&] { swiglu(mx::zeros({64}), g, u, rhs); });
  zmlx::QuantizedWeight mx4{g.w, mx::zeros({4, 64, 2}, mx::uint8), std::nullopt};
  expect_error("integer x", "Only float32", [&] {
    swiglu(mx::zeros({1, 1, 64}, mx::int32), mx4, mx4, rhs, true, 32, 4, "mxfp4");
  });
  expect_error("float indices", "integral", [&] { swiglu(x, g, u, mx::zeros({3, 2})); });
  expect_error("bits 7", "bits must be", [&] { swiglu(x, g, u, rhs, true, 32, 7); });
  expect_error("group 48", "group size must be", [&] { swiglu(x, g, u, rhs, true, 48); });
  expect_error("unknown mode", "'nf4'", [&] { swiglu(x, g, u, rhs, true, 32, 4, "nf4"); });
  expect_error("mxfp4 with biases", "must be null", [&] { swiglu(x, g, u, rhs, true, 32, 4, "mxfp4"); });
  expect_error("no biases", "must be provided", [&] { swiglu(x, {g.w, g.scales, std::nullopt}, u, rhs); });
  expect_error("float weights", "uint32", [&] { swiglu(x, {mx::astype(g.w, mx::float32), g.scales, g.biases}, u, rhs); });
  expect_error("different sizes", "same shape", [&] { swiglu(x, g, quantized({4, 96, 64}, 5), rhs); });
  expect_error("wrong group size", "incompatible", [&] { swiglu(x, g, u, rhs, true, 64); });
  expect_error("index out of range", "rhs_indices holds 9", [&] { mx::eval(swiglu(x, g, u, array({9u}, {1, 1}))); });
  expect(close(swiglu(x, g, u, rhs), stock(x)), "and the stream works on after that");
  expect_error("top_k too large", "between 1 and", [&] { zmlx::moe_router(mx::zeros({2, 4}), 5, true, "softmax"); });
  expect_error("unknown scoring", "'relu'", [&] { zmlx::moe_router(mx::zeros({2, 4}), 2, true, "relu"); });
  auto h = mx::random::normal({3, 2, 1, 64}, mx::float32, 0.0f, 1.0f, mx::random::key(6));
  auto scores = mx::random::uniform({3, 2}, mx::float32, mx::random::key(7));
  expect_error("combine, scores of another shape", "scores should", [&] {
    zmlx::gather_qmm_combine(h, d, rhs, mx::zeros({3, 1}), 32, 4, "affine", exact);
  });

  // transformations
  auto f = [&](const std::vector<array>& in) { return std::vector<array>{swiglu(in[0], g, u, rhs)}; };
  auto fs = [&](const std::vector<array>& in) { return std::vector<array>{stock(in[0])}; };
  auto cotangent = mx::random::normal({3, 2, 1, 64}, mx::float32, 0.0f, 1.0f, mx::random::key(8));
  expect(close(mx::vjp(f, {x}, {cotangent}).second[0], mx::vjp(fs, {x}, {cotangent}).second[0]), "vjp of x");
  auto tangent = mx::random::normal(x.shape(), mx::float32, 0.0f, 1.0f, mx::random::key(9));
  auto step = array(1e-2f);
  auto numeric = (stock(x + step * tangent) - stock(x - step * tangent)) / array(2e-2f);
  expect(close(mx::jvp(f, {x}, {tangent}).second[0], numeric, 2e-2), "jvp of x");
  auto fscale = [&](const std::vector<array>& in) {
    return std::vector<array>{swiglu(x, {g.w, in[0], g.biases}, u, rhs)};
  };
  auto by_scale = mx::vjp(fscale, {g.scales}, {cotangent}).second[0];
  expect(by_scale.shape() == g.scales.shape() && !mx::any(mx::isnan(by_scale)).item<bool>(), "vjp of scales");
  auto batch = mx::random::normal({5, 3, 1, 1, 64}, mx::float32, 0.0f, 1.0f, mx::random::key(10));
  auto mapped = mx::vmap(std::function<std::vector<array>(const std::vector<array>&)>(f), {0})({batch})[0];
  bool same = mapped.shape() == mx::Shape{5, 3, 2, 1, 64};
  for (int i = 0; same && i < 5; i++) {
    same = close(mx::take(mapped, i, 0), stock(mx::take(batch, i, 0)));
  }
  expect(same, "vmap over x");
  auto combine = [&](const std::vector<array>& in) {
    return std::vector<array>{zmlx::gather_qmm_combine(in[0], d, rhs, in[1], 32, 4, "affine", exact)};
  };
  auto combine_stock = [&](const std::vector<array>& in) {
    auto y = mx::gather_qmm(in[0], d.w, d.scales, d.biases, std::nullopt, rhs, true, 32, 4);
    return std::vector<array>{mx::sum(mx::squeeze(y, -2) * mx::expand_dims(in[1], -1), -2)};
  };
  auto ct = mx::ones({3, 32});
  auto a = mx::vjp(combine, {h, scores}, {ct}).second;
  auto b = mx::vjp(combine_stock, {h, scores}, {ct}).second;
  expect(close(a[0], b[0]) && close(a[1], b[1]), "combine: vjp of x and scores");
  auto logits = mx::random::normal({6, 8}, mx::float32, 0.0f, 1.0f, mx::random::key(11));
  auto router = [](const std::vector<array>& in) {
    return std::vector<array>{zmlx::moe_router(in[0], 2, false, "softmax").second};
  };
  auto router_vjp = mx::vjp(router, {logits}, {mx::ones({6, 2})}).second[0];
  expect(close(mx::sum(router_vjp, -1), mx::zeros({6}), 1e-5), "router: vjp of logits sums to zero");
  auto w2 = quantized({64, 64}, 12);
  auto qmm = [&](const std::vector<array>& in) {
    return std::vector<array>{zmlx::quantized_matmul(in[0], w2, true, 32, 4, "affine", exact)};
  };
  auto rows = mx::random::normal({5, 64}, mx::float32, 0.0f, 1.0f, mx::random::key(13));
  expect(close(mx::vmap(std::function<std::vector<array>(const std::vector<array>&)>(qmm), {0})({rows})[0], qmm({rows})[0]), "quantized_matmul: vmap");

  // streams and thread counts
  auto big = quantized({8, 512, 256}, 14);
  auto bx = mx::astype(mx::random::normal({16, 1, 1, 256}, mx::float32, 0.0f, 1.0f, mx::random::key(15)), mx::float32);
  auto bi = mx::astype(mx::random::randint(0, 8, {16, 4}, mx::int32, mx::random::key(16)), mx::uint32);
  mx::eval(bx, bi);
  auto reference = mx::gather_qmm(bx, big.w, big.scales, big.biases, std::nullopt, bi, true, 32, 4);
  reference = reference * mx::sigmoid(reference) * reference;
  mx::eval(reference);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&] {
      auto s = mx::new_stream(mx::Device::cpu);
      for (int i = 0; i < 20; i++) {
        auto y = zmlx::gather_qmm_swiglu(bx, big, big, std::nullopt, bi, true, 32, 4, "affine", false, exact, s);
        mx::eval(y);
        wrong += std::memcmp(y.data<float>(), reference.data<float>(), y.nbytes()) != 0;
      }
    });
  }
  for (int n : {1, 3, 2, 0, 4}) {
    zmlx::set_num_threads(n);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (auto& t : threads) {
    t.join();
  }
  expect(wrong == 0, "four streams at once while the pool is resized");
  expect(zmlx::num_threads() == 4, "num_threads");
  std::printf("%d failed\n", failures);
  return failures != 0;
}
