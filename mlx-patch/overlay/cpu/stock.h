// What is known of the stock MLX that is linked.

#pragma once

namespace zmlx::cpu {

// Whether its quantized products in float32 round as ours do: found out once, by running one.
bool stock_products_round_alike();

// How its convolutions add up, which is BLAS's choice: found out once, by running some.
enum class StockConv {
  Rounds, // products and sums one after another, each rounded
  Fuses, // the same with one rounding for a product and its sum
  Other,
};
StockConv stock_conv();

} // namespace zmlx::cpu
