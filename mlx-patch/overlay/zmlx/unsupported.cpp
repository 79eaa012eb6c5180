// Stands in for the backends that have no kernels yet: a primitive that gets one loses its lines here. `supports`
// gives the reason before anyone gets here. One file for all, since most of compiling it is reading MLX's headers.

#include "gather_qmm_swiglu/gather_qmm_swiglu.h"
#include "gather_qmm_combine/gather_qmm_combine.h"
#include "moe_router/moe_router.h"
#include "zmlx/quant_params.h"
#include "quantized_matmul/quantized_matmul.h"
#include "rms_norm/rms_norm.h"
#include "qk_norm_rope/qk_norm_rope.h"
#include "attention/attention.h"
#include "greedy_token/greedy_token.h"

namespace zmlx {

void GatherQMMSwiGLU::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("gather_qmm_swiglu");
}

void GatherQMMCombine::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("gather_qmm_combine");
}

void MoERouter::eval_gpu(const std::vector<array>&, std::vector<array>&) {
  throw_no_gpu_kernel("moe_router");
}

void QuantizedMatmulRows::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("quantized_matmul");
}

void FusedRMSNorm::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("rms_norm");
}

void QKNormRope::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("qk_norm_rope");
}

void Attention::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("attention");
}

void GreedyToken::eval_gpu(const std::vector<array>&, array&) {
  throw_no_gpu_kernel("greedy_token");
}

} // namespace zmlx
