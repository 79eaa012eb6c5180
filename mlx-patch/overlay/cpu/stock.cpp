#include "cpu/stock.h"

#include <cstring>

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

} // namespace

bool stock_products_round_alike() {
  static const bool alike = run_probe();
  return alike;
}

} // namespace zmlx::cpu
