// Stands in for the backends that have no kernel yet. `supports` gives the reason before anyone gets here.

#include "attention/attention.h"
#include "zmlx/quant_params.h"

namespace zmlx {

void Attention::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("attention");
}

} // namespace zmlx
