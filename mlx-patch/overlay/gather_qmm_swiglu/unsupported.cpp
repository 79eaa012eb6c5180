// Stands in for the backends that have no kernel yet. `supports` gives the reason before anyone gets here.

#include "gather_qmm_swiglu/gather_qmm_swiglu.h"

namespace zmlx {

void GatherQMMSwiGLU::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("gather_qmm_swiglu");
}

} // namespace zmlx
