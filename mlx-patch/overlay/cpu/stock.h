// What is known of the stock MLX that is linked.

#pragma once

namespace zmlx::cpu {

// Whether its quantized products in float32 round as ours do: found out once, by running one.
bool stock_products_round_alike();

} // namespace zmlx::cpu
