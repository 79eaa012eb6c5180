// CUDA backend of MoERouter: scores, choice and weights of the experts in one launch in place of six, or eleven where scores are
// sigmoids; a block for a token.

#include "cuda/depend.cuh"
#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "moe_router/kernel.cuh"
#include "moe_router/moe_router.h"
#include "moe_router/sigmoid.cuh"

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

template <typename Score, typename T>
__global__ __launch_bounds__(kMostRouterThreads) void sigmoid_router(const __grid_constant__ SigmoidRouter<T> p) {
  wait_for_inputs();
  let_next_begin();
  route_by_sigmoid<Score>(p, blockIdx.x);
}

FloatArray float_array(const array& a) {
  auto type = a.dtype() == float16 ? FloatType::F16 : a.dtype() == bfloat16 ? FloatType::Bf16 : FloatType::F32;
  return {const_cast<char*>(gpu_ptr<char>(a)), type};
}

void by_sigmoid(const MoERouter::State& state, const array& logits, const array* bias, array& indices, array& weights,
                Encoder& encoder) {
  dispatch_type(logits.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    SigmoidRouter<T> parameters = {
        gpu_ptr<T>(logits),
        bias ? float_array(*bias) : FloatArray{},
        gpu_ptr<uint32_t>(indices),
        float_array(weights),
        logits.shape(-1),
        state.top_k,
        state.descending,
        state.normalize,
        state.epsilon,
        state.scale};
    unsigned tokens = logits.size() / logits.shape(-1);
    auto kernel = state.in_f32 ? sigmoid_router<float, T> : sigmoid_router<T, T>;
    launch(encoder, kernel, tokens, kMostRouterThreads, 0, {logits, bias ? *bias : logits}, {indices, weights}, parameters);
  });
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
  if (auto& params = primitive.params(); params.scoring == RouterScoring::Sigmoid) {
    auto bias = params.has_selection_bias ? in_rows(inputs[P::kOptional], encoder) : logits;
    return by_sigmoid(params, logits, params.has_selection_bias ? &bias : nullptr, indices, weights, encoder);
  }
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

std::string refuse_sigmoid(const Request& r) {
  int64_t reads = r.flag("in_f32") ? 4 : 16 / static_cast<int64_t>(r.dtype.size());
  if (r.integer("num_experts") > on_cuda::kMostRouted) {
    return "the CUDA kernel chooses among at most " + std::to_string(on_cuda::kMostRouted) + " experts";
  }
  if (r.integer("top_k") > 2 * reads) {
    return "stock adds more than " + std::to_string(2 * reads) + " weights in another order";
  }
  return on_cuda::refuse(r);
}

// What the CUDA kernel has for sigmoid scores alone.
std::string refuse_variants_of_softmax(const Request& r) {
  bool is_plain = r.text("order") == "ascending" && !r.flag("in_f32") && !r.flag("selection_bias") &&
      r.number("epsilon") == 0 && r.number("scale") == 1 && r.text("weights") == "as_scored";
  return is_plain ? "" : "the CUDA kernel has bias, epsilon, scale, float32 and descending order for sigmoid scores alone";
}

std::string refuse_on_cuda(const Request& r) {
  if (r.text("scoring") == "sigmoid") {
    return refuse_sigmoid(r);
  }
  if (auto reason = refuse_variants_of_softmax(r); !reason.empty()) {
    return reason;
  }
  int64_t reads = 16 / static_cast<int64_t>(r.dtype.size());
  if (r.text("scoring") == "softmax_of_top_k" && r.flag("normalize")) {
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
  return gpu_backend<MoERouter, eval>(
      refuse_on_cuda,
      {"scoring", "order", "in_f32", "selection_bias", "epsilon", "scale", "weights"});
}

} // namespace zmlx
