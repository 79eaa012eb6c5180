// Metal backend of GatherQMMSwiGLU: chooses the kernel of kernel.metal or kernel_fp.metal that adds as stock's
// `gather_qmv_fast` or `gather_qmv` would (mlx/backend/metal/quantized.cpp), one launch for all experts of all rows.

#include "gather_qmm_swiglu/gather_qmm_swiglu.h"
#include "gather_qmm_swiglu/kernel_params.h"
#include "metal/host_qmv.h"

namespace zmlx {

using namespace mlx::core;

namespace {

void eval(const GatherQMMSwiGLU& primitive, const std::vector<array>& in, std::span<array> outputs) {
  using P = GatherQMMSwiGLU;
  auto& out = outputs[0];
  on_metal::allocate(out);
  if (out.size() == 0) {
    return;
  }
  auto& state = primitive.params();
  auto q = state.params();
  bool affine = q.affine();
  GatherQmmSwigluParams params = {};
  params.K = in[P::kX].shape(-1);
  params.N = out.shape(-1);
  params.M = in[P::kX].shape(-2);
  params.x_stride = int64_t{params.M} * params.K;
  params.gate_w_stride = params.up_w_stride = on_metal::matrix_size(in[P::kGateW]);
  params.gate_scales_stride = params.up_scales_stride = on_metal::matrix_size(in[P::kGateScales]);
  if (affine) {
    params.gate_biases_stride = params.up_biases_stride = on_metal::matrix_size(in[P::kGateBiases]);
  }
  params.gate_bias_stride = params.up_bias_stride = params.N;
  params.has_bias = state.has_bias;
  params.activation = static_cast<int>(state.activation);
  params.alpha = state.alpha;
  params.limit = state.limit;
  on_metal::GatherStrides indices(in[P::kLhsIndices], in[P::kRhsIndices]);
  params.ndim = indices.ndim();

  auto s = out.primitive().stream();
  auto& d = metal::device(s.device);
  auto& encoder = metal::get_command_encoder(s);
  on_metal::Qmv qmv = {out.dtype(), q.group_size, q.bits, q.mode, params.K, params.N};
  encoder.set_compute_pipeline_state(on_metal::pipeline(d, qmv.kernel("gather_qmm_swiglu")));
  int inputs = affine ? P::kUpBiases + 1 : P::kUpScales + 1;
  for (int i = 0; i < inputs; i++) {
    encoder.set_input_array(in[i], i);
  }
  encoder.set_output_array(out, 9);
  encoder.set_bytes(params, 10);
  indices.encode(encoder, 11);
  // any array where there is none: Metal wants every buffer to be something
  int bias = P::bias_at(q);
  encoder.set_input_array(in[state.has_bias ? bias : P::kX], 14);
  encoder.set_input_array(in[state.has_bias ? bias + 1 : P::kX], 15);
  auto products = in[P::kLhsIndices].size();
  encoder.dispatch_threadgroups(qmv.grid(params.M, products), qmv.group());
}

} // namespace

Definition define_gather_qmm_swiglu();

GpuBackend gather_qmm_swiglu_gpu() {
  return on_metal::backend<GatherQMMSwiGLU, eval>(define_gather_qmm_swiglu());
}

} // namespace zmlx
