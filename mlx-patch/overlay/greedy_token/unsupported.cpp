// Stands in for the backends that have no kernel yet. `supports` gives the reason before anyone gets here.

#include "greedy_token/greedy_token.h"
#include "zmlx/quant_params.h"

namespace zmlx {

void GreedyToken::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("greedy_token");
}

} // namespace zmlx
