// CUDA backend of MoERouter: softmax, choice and weights of the experts in one launch in place of six, a block for a token.

#include "cuda/depend.cuh"
#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "moe_router/kernel.cuh"
#include "moe_router/moe_router.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

template <typename T>
__global__ __launch_bounds__(kMostRouterThreads) void moe_router(const __grid_constant__ Router<T> p) {
  wait_for_inputs();
  let_next_begin();
  route(p, blockIdx.x);
}

} // namespace

} // namespace on_cuda

namespace {

void eval(const MoERouter& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = MoERouter;
  using namespace on_cuda;
  auto& indices = outputs[P::kIndices];
  auto& weights = outputs[P::kScores];
  auto& encoder = cu::get_command_encoder(indices.primitive().stream());
  allocate(indices, encoder);
  allocate(weights, encoder);
  if (indices.size() == 0) {
    return;
  }
  auto logits = in_rows(inputs[P::kLogits], encoder);
  auto state = primitive.state();
  dispatch_type(logits.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    Router<T> parameters = {
        gpu_ptr<T>(logits),
        gpu_ptr<uint32_t>(indices),
        gpu_ptr<T>(weights),
        logits.shape(-1),
        std::get<0>(state),
        std::get<8>(state),
        std::get<1>(state) == RouterScoring::SoftmaxOfTopK};
    unsigned tokens = logits.size() / logits.shape(-1);
    launch(encoder, moe_router<T>, tokens, kMostRouterThreads, 0, {logits}, {indices, weights}, parameters);
  });
}

std::string refuse_on_cuda(const Request& r) {
  int64_t reads = 16 / static_cast<int64_t>(r.dtype.size());
  auto scoring = r.text("scoring");
  if (scoring != "softmax" && scoring != "softmax_of_top_k") {
    return "experts scored by " + std::string(scoring) + " have no CUDA kernel";
  }
  if (scoring == "softmax_of_top_k" && r.flag("normalize")) {
    return "weights that sum to one already are not divided by their sum in the CUDA kernel";
  }
  if (r.integer("num_experts") > 32 * reads) {
    return "stock adds the scores of more than " + std::to_string(32 * reads) + " experts in another order";
  }
  if (r.integer("top_k") > 2 * reads) {
    return "stock adds more than " + std::to_string(2 * reads) + " weights in another order";
  }
  return on_cuda::refuse(r);
}

} // namespace

GpuBackend moe_router_gpu() {
  return gpu_backend<MoERouter, eval>(refuse_on_cuda, {"scoring"});
}

} // namespace zmlx
