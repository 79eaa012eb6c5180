// Metal backend of SwiGLUMLP: chooses the kernel of kernel.metal or kernel_fp.metal that adds as stock's `qmv_fast` or `qmv`
// would (mlx/backend/metal/quantized.cpp), for one row of x.

#include "metal/host_qmv.h"
#include "swiglu_mlp/kernel_params.h"
#include "swiglu_mlp/swiglu_mlp.h"

namespace zmlx {

using namespace mlx::core;

namespace {

void eval(const SwiGLUMLP& primitive, const std::vector<array>& in, std::span<array> outputs) {
  using P = SwiGLUMLP;
  auto& out = outputs[0];
  on_metal::allocate(out);
  if (out.size() == 0) {
    return;
  }
  auto& state = primitive.params();
  auto q = state.params();
  SwigluMlpParams params = {};
  params.K = in[P::kX].shape(-1);
  params.N = out.shape(-1);
  params.has_bias = state.has_bias;
  params.activation = static_cast<int>(state.activation);
  params.alpha = state.alpha;
  params.limit = state.limit;

  auto s = out.primitive().stream();
  auto& d = metal::device(s.device);
  auto& encoder = metal::get_command_encoder(s);
  on_metal::Qmv qmv = {out.dtype(), q.group_size, q.bits, q.mode, params.K, params.N};
  encoder.set_compute_pipeline_state(on_metal::pipeline(d, qmv.kernel("swiglu_mlp")));
  int inputs = q.affine() ? P::kUpBiases + 1 : P::kUpScales + 1;
  for (int i = 0; i < inputs; i++) {
    encoder.set_input_array(in[i], i);
  }
  encoder.set_output_array(out, 7);
  encoder.set_bytes(params, 8);
  // any array where there is none: Metal wants every buffer to be something
  int bias = P::bias_at(q);
  encoder.set_input_array(in[state.has_bias ? bias : P::kX], 9);
  encoder.set_input_array(in[state.has_bias ? bias + 1 : P::kX], 10);
  encoder.dispatch_threadgroups(qmv.grid(1, 1), qmv.group());
}

} // namespace

Definition define_swiglu_mlp();

GpuBackend swiglu_mlp_gpu() {
  return on_metal::backend<SwiGLUMLP, eval>(define_swiglu_mlp());
}

} // namespace zmlx
