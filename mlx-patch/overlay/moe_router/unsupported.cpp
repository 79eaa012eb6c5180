// Stands in for the backends that have no kernel yet. `supports` gives the reason before anyone gets here.

#include "moe_router/moe_router.h"
#include "zmlx/quant_params.h"

namespace zmlx {

void MoERouter::eval_gpu(const std::vector<array>&, std::vector<array>&) {
  throw_no_gpu_kernel("moe_router");
}

} // namespace zmlx
