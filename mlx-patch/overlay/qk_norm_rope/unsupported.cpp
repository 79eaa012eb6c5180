// Stands in for the backends that have no kernel yet. `supports` gives the reason before anyone gets here.

#include "qk_norm_rope/qk_norm_rope.h"
#include "zmlx/quant_params.h"

namespace zmlx {

void QKNormRope::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("qk_norm_rope");
}

} // namespace zmlx
