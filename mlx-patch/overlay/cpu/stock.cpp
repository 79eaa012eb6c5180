#include "cpu/stock.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/stock_probe.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace zmlx::cpu {

using namespace mlx::core;

namespace {

bool run_probe() {
  StockProbe probe;
  constexpr int rows = StockProbe::kRows;
  constexpr int depth = StockProbe::kDepth;
  uint32_t packed[rows * depth / 4];
  std::memcpy(packed, probe.w, sizeof(packed));
  // A stream of its own: whatever waits or failed on the caller's stays there.
  auto s = new_stream(Device::cpu);
  auto products = quantized_matmul(
      array(&probe.x[0][0], {rows, depth}),
      array(packed, {rows, depth / 4}),
      array(probe.scales, {rows, 1}),
      array(probe.biases, {rows, 1}),
      true,
      depth,
      8,
      "affine",
      s);
  eval(products);
  return probe.agrees(products.data<float>());
}

// Channels by themselves, over the lengths and taps at which BLAS may change its mind.
StockConv probe_conv() {
  constexpr int channels = 3;
  auto s = new_stream(Device::cpu);
  bool rounds = true;
  bool fuses = true;
  uint32_t state = 1;
  auto random = [&state] {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
  };
  for (int taps : {2, 3, 4, 7, 16}) {
    for (int length : {1, 2, 3, 8, 33, 130}) {
      std::vector<float> x((length + taps - 1) * channels);
      std::vector<float> w(channels * taps);
      for (auto& v : x) {
        v = random();
      }
      for (auto& v : w) {
        v = random();
      }
      auto y = conv1d(
          array(x.data(), {1, length + taps - 1, channels}), array(w.data(), {channels, taps, 1}), 1, 0, 1, channels, s);
      eval(y);
      for (int i = 0; i < length * channels; i++) {
        float rounded = 0;
        float fused = 0;
        for (int k = 0; k < taps; k++) {
          float a = x[i + k * channels];
          float b = w[i % channels * taps + k];
          float product = a * b;
          rounded += product;
          fused = std::fma(a, b, fused);
        }
        rounds = rounds && y.data<float>()[i] == rounded;
        fuses = fuses && y.data<float>()[i] == fused;
      }
    }
  }
  return rounds ? StockConv::Rounds : fuses ? StockConv::Fuses : StockConv::Other;
}

} // namespace

bool stock_products_round_alike() {
  static const bool alike = run_probe();
  return alike;
}

StockConv stock_conv() {
  static const StockConv found = probe_conv();
  return found;
}

} // namespace zmlx::cpu
