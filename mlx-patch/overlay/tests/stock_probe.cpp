// The probe of cpu/stock_probe.h on a loop as stock has it: prints "alike" or "different". mlx-patch/tests/stock_probe.rs
// compiles this with and without contraction.

#include <cstdio>

#include "cpu/stock_probe.h"

using zmlx::cpu::StockProbe;

__attribute__((noinline)) float
product(const float* x, const unsigned char* w, const float* scale, const float* bias, int depth) {
  float sum = 0;
  for (int k = 0; k < depth; k++) {
    sum += x[k] * (*scale * static_cast<float>(w[k]) + *bias);
  }
  return sum;
}

int main() {
  StockProbe probe;
  constexpr int rows = StockProbe::kRows;
  float products[rows * rows];
  for (int i = 0; i < rows; i++) {
    for (int j = 0; j < rows; j++) {
      products[i * rows + j] =
          product(probe.x[i], probe.w[j], &probe.scales[j], &probe.biases[j], StockProbe::kDepth);
    }
  }
  std::puts(probe.agrees(products) ? "alike" : "different");
}
