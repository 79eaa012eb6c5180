// How far stock, exact and fast are from the product in f64, per dtype: error over the root mean square of the result.

#include <cmath>
#include <cstdio>
#include <random>

#include "mlx/mlx.h"
#include "zmlx/primitives.h"

namespace mx = mlx::core;
using mx::array;

int main() {
  std::mt19937_64 rng(1);
  std::normal_distribution<float> normal;
  const int N = 512;
  std::printf("%-9s %6s %-6s %12s %12s\n", "dtype", "K", "path", "rms error", "max error");
  for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
    for (int K : {256, 768, 2048, 8192}) {
      std::vector<float> w(int64_t(N) * K), x(K);
      for (auto& v : w) {
        v = normal(rng) / std::sqrt(float(K));
      }
      for (auto& v : x) {
        v = normal(rng);
      }
      auto q = mx::quantize(mx::astype(array(w.data(), {N, K}, mx::float32), dtype), 64, 4);
      auto xa = mx::astype(array(x.data(), {1, K}, mx::float32), dtype);
      auto s32 = mx::astype(q[1], mx::float32);
      auto b32 = mx::astype(q[2], mx::float32);
      auto x32 = mx::astype(xa, mx::float32);
      mx::eval(q);
      mx::eval(s32, b32, x32);
      std::vector<double> y(N);
      double square = 0;
      for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++) {
          uint32_t v = q[0].data<uint32_t>()[(int64_t(n) * K + k) / 8] >> (4 * (k % 8)) & 15;
          int g = (n * K + k) / 64;
          y[n] += double(x32.data<float>()[k]) * (double(s32.data<float>()[g]) * v + b32.data<float>()[g]);
        }
        square += y[n] * y[n];
      }
      double rms = std::sqrt(square / N);
      auto report = [&](const char* path, array a) {
        a = mx::astype(a, mx::float32);
        mx::eval(a);
        double worst = 0, sum = 0;
        for (int n = 0; n < N; n++) {
          double e = std::abs(a.data<float>()[n] - y[n]) / rms;
          worst = std::max(worst, e);
          sum += e * e;
        }
        std::printf(
            "%-9s %6d %-6s %12.3e %12.3e\n",
            dtype == mx::bfloat16      ? "bfloat16"
                : dtype == mx::float16 ? "float16"
                                       : "float32",
            K,
            path,
            std::sqrt(sum / N),
            worst);
      };
      zmlx::QuantizedWeight weight{q[0], q[1], q[2]};
      report("stock", mx::quantized_matmul(xa, q[0], q[1], q[2], true, 64, 4));
      report("exact", zmlx::quantized_matmul(xa, weight, true, 64, 4, "affine", zmlx::Precision::Exact));
      report("fast", zmlx::quantized_matmul(xa, weight, true, 64, 4, "affine", zmlx::Precision::Fast));
    }
  }
}
