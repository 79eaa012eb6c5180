// Metal backend of MoERouter: a threadgroup for each token, with as many threads as stock's softmax has
// (mlx/backend/metal/softmax.cpp), which decides the order of additions.

#include "metal/host.h"
#include "moe_router/kernel_params.h"
#include "moe_router/moe_router.h"

namespace zmlx {

using namespace mlx::core;

namespace {

int type_code(Dtype dtype) {
  return dtype == float32 ? 1 : dtype == float16 ? 2 : 3;
}

void eval(const MoERouter& primitive, const std::vector<array>& in, std::span<array> outputs) {
  using P = MoERouter;
  for (auto& out : outputs) {
    on_metal::allocate(out);
  }
  auto& weights = outputs[P::kScores];
  if (weights.size() == 0) {
    return;
  }
  auto& state = primitive.params();
  auto& logits = in[P::kLogits];
  // any array where there is none: Metal wants every buffer to be something
  auto& bias = state.has_selection_bias ? in[P::kOptional] : logits;
  MoeRouterParams params = {};
  params.num_experts = logits.shape(-1);
  params.top_k = state.top_k;
  params.scoring = static_cast<int>(state.scoring);
  params.precise = state.precise;
  params.descending = state.descending;
  params.bias_type = state.has_selection_bias ? type_code(bias.dtype()) : 0;
  params.num_groups = state.num_groups;
  params.top_k_groups = state.top_k_groups;
  params.normalize = state.normalize;
  params.epsilon = state.epsilon;
  params.scale = state.scale;

  auto type = std::string(on_metal::type_name(logits.dtype()));
  auto scores = std::string(state.in_f32 ? "float" : type);
  auto out = std::string(on_metal::type_name(weights.dtype()));
  auto s = weights.primitive().stream();
  auto& d = metal::device(s.device);
  auto& encoder = metal::get_command_encoder(s);
  encoder.set_compute_pipeline_state(on_metal::pipeline(
      d,
      {"moe_router/kernel.metal",
       "zmlx_moe_router_" + type + "_" + scores + "_" + out,
       "zmlx_moe_router<" + type + ", " + scores + ", " + out + ">"}));
  encoder.set_input_array(logits, 0);
  encoder.set_input_array(bias, 1);
  encoder.set_output_array(outputs[P::kIndices], 2);
  encoder.set_output_array(weights, 3);
  encoder.set_bytes(params, 4);
  encoder.dispatch_threadgroups(
      MTL::Size(weights.size() / state.top_k, 1, 1), on_metal::row_group(params.num_experts));
}

} // namespace

Definition define_moe_router();

GpuBackend moe_router_gpu() {
  return on_metal::backend<MoERouter, eval>(define_moe_router());
}

} // namespace zmlx
