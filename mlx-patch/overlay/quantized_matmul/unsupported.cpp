// Stands in for the backends that have no kernel yet. `supports` gives the reason before anyone gets here.

#include "quantized_matmul/quantized_matmul.h"

namespace zmlx {

void QuantizedMatmulRows::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("quantized_matmul");
}

} // namespace zmlx
