// Metal backend of QKNormRope: a threadgroup for each head of each token, with as many threads as stock's rms_single_row
// has (mlx/backend/metal/normalization.cpp). x is read where it lies.

#include <cmath>

#include "metal/host.h"
#include "qk_norm_rope/kernel_params.h"
#include "qk_norm_rope/qk_norm_rope.h"

namespace zmlx {

using namespace mlx::core;

namespace {

// Strides of x [B, L, H * D] or [B, L, H, D].
void set_strides(QkNormRopeParams& params, const array& x) {
  params.x_batch = x.strides(0);
  params.x_token = x.strides(1);
  params.x_number = x.strides(-1);
  params.x_head = x.ndim() == 4 ? x.strides(2) : params.head_dim * x.strides(2);
}

void eval(const QKNormRope& primitive, const std::vector<array>& in, std::span<array> outputs) {
  using P = QKNormRope;
  auto& out = outputs[0];
  on_metal::allocate(out);
  if (out.size() == 0) {
    return;
  }
  auto& state = primitive.params();
  auto& x = in[P::kX];
  auto& offset = in[P::kOffset];
  // any array where there is none: Metal wants every buffer to be something
  auto& weight = state.has_weight ? in[P::kOptional] : x;
  auto& freqs = state.has_freqs ? in[P::kOptional + (state.has_weight ? 1 : 0)] : offset;
  int tokens = out.shape(2);
  QkNormRopeParams params = {};
  params.head_dim = out.shape(-1);
  set_strides(params, x);
  params.offset_batch = offset.size() > 1 ? offset.strides(0) : 0;
  params.dims = state.dims;
  params.has_weight = state.has_weight;
  params.has_freqs = state.has_freqs;
  params.traditional = state.traditional;
  // mlx/backend/metal/rope.cpp; what comes of a norm or a product lies in rows
  bool in_rows = state.has_weight || state.input_scale != 1 || x.flags().row_contiguous;
  params.single = tokens == 1 && offset.size() == 1 && in_rows;
  params.eps = state.eps;
  params.log2_base = std::log2(state.base);
  params.scale = state.scale;
  params.input_scale = state.input_scale;

  auto s = out.primitive().stream();
  auto& d = metal::device(s.device);
  auto& encoder = metal::get_command_encoder(s);
  auto type = std::string(on_metal::type_name(out.dtype()));
  encoder.set_compute_pipeline_state(on_metal::pipeline(
      d, {"qk_norm_rope/kernel.metal", "zmlx_qk_norm_rope_" + type, "zmlx_qk_norm_rope<" + type + ">"}));
  encoder.set_input_array(x, 0);
  encoder.set_input_array(offset, 1);
  encoder.set_input_array(weight, 2);
  encoder.set_input_array(freqs, 3);
  encoder.set_output_array(out, 4);
  encoder.set_bytes(params, 5);
  encoder.dispatch_threadgroups(
      MTL::Size(tokens, state.num_heads, out.shape(0)), on_metal::row_group(params.head_dim));
}

} // namespace

Definition define_qk_norm_rope();

GpuBackend qk_norm_rope_gpu() {
  return on_metal::backend<QKNormRope, eval>(define_qk_norm_rope());
}

} // namespace zmlx
