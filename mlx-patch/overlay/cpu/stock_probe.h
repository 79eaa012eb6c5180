// A quantized product in float32 whose bits tell how stock's loop was compiled. Compilers may contract a * b + c into
// one rounding (-march=native, a distribution's flags, -ffp-contract=fast) or reorder a sum (-ffast-math); our kernels
// round every product and sum in order. This header knows no framework.

#pragma once

#include <cstdint>

namespace zmlx::cpu {

// x [rows, depth] times the transposed weights [rows, depth], of 8 bits and one group a row: the diagonal counts.
struct StockProbe {
  static constexpr int kRows = 3;
  static constexpr int kDepth = 32;

  float x[kRows][kDepth] = {};
  uint8_t w[kRows][kDepth] = {};
  float scales[kRows] = {0x1p-12f, 0x1.000002p0f, 0x1.fffffep23f};
  float biases[kRows] = {1, -3, 1};
  float expected[kRows] = {0, 0x1p-21f, 0x1p24f};

  StockProbe() {
    // -(1 + 2^-11) + (1 + 2^-12)^2: the square's last bit is lost when it is rounded.
    x[0][0] = -0x1.002p0f;
    x[0][1] = 0x1.001p0f;
    w[0][1] = 1;
    // (1 + 2^-23) * 3 - 3 within a weight: the product rounds up.
    x[1][0] = 1;
    w[1][0] = 3;
    // 2^24 + 1 + 1 ..: every 1 is lost, unless they are added to each other first.
    for (float& v : x[2]) {
      v = 1;
    }
    w[2][0] = 1;
  }

  // Of all products, [rows, rows].
  bool agrees(const float* products) const {
    for (int i = 0; i < kRows; i++) {
      if (products[i * kRows + i] != expected[i]) {
        return false;
      }
    }
    return true;
  }
};

} // namespace zmlx::cpu
