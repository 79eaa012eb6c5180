// Metal backend of GatherQMMCombine: chooses the kernel of kernel.metal or kernel_fp.metal that adds as stock's
// `gather_qmv_fast` or `gather_qmv` would (mlx/backend/metal/quantized.cpp), one launch for all experts of all tokens.

#include <algorithm>

#include "gather_qmm_combine/gather_qmm_combine.h"
#include "gather_qmm_combine/kernel_params.h"
#include "metal/host_qmv.h"

namespace zmlx {

using namespace mlx::core;

namespace {

// Rows of y that a threadgroup has, and the most simdgroups that share its experts.
constexpr int kRows = 4;
constexpr int kMostSimdgroups = 8;

void eval(const GatherQMMCombine& primitive, const std::vector<array>& in, std::span<array> outputs) {
  using P = GatherQMMCombine;
  auto& out = outputs[0];
  on_metal::allocate(out);
  if (out.size() == 0) {
    return;
  }
  auto& q = primitive.params();
  bool affine = q.affine();
  GatherQmmCombineParams params = {};
  params.K = in[P::kX].shape(-1);
  params.N = out.shape(-1);
  params.top_k = in[P::kX].shape(-3);
  params.wide_scores = in[P::kScores].dtype() == float32 && out.dtype() != float32;
  params.w_stride = on_metal::matrix_size(in[P::kW]);
  params.scales_stride = on_metal::matrix_size(in[P::kScales]);
  params.biases_stride = affine ? on_metal::matrix_size(in[P::kBiases]) : 0;
  params.has_bias = primitive.has_bias();
  params.bias_stride = params.N;

  auto s = out.primitive().stream();
  auto& d = metal::device(s.device);
  auto& encoder = metal::get_command_encoder(s);
  on_metal::Qmv qmv = {out.dtype(), q.group_size, q.bits, q.mode, params.K, params.N};
  encoder.set_compute_pipeline_state(on_metal::pipeline(d, qmv.kernel("gather_qmm_combine")));
  int inputs = affine ? P::kBiases + 1 : P::kScales + 1;
  for (int i = 0; i < inputs; i++) {
    encoder.set_input_array(in[i], i);
  }
  encoder.set_output_array(out, 6);
  encoder.set_bytes(params, 7);
  // any array where there is none: Metal wants every buffer to be something
  encoder.set_input_array(in[params.has_bias ? P::bias_at(q) : P::kScores], 8);
  MTL::Size grid((params.N + kRows - 1) / kRows, out.size() / params.N, 1);
  encoder.dispatch_threadgroups(grid, MTL::Size(32, std::min(params.top_k, kMostSimdgroups), 1));
}

} // namespace

Definition define_gather_qmm_combine();

GpuBackend gather_qmm_combine_gpu() {
  return on_metal::backend<GatherQMMCombine, eval>(define_gather_qmm_combine());
}

} // namespace zmlx
