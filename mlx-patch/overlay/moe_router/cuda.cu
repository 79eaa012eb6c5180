// CUDA backend of MoERouter: softmax, choice and weights of the experts in one launch in place of six.
//
// A block has one token. Its first warp takes the softmax in the order of stock (mlx/backend/cuda/softmax.cu, of as many
// values as one warp reads at once). Stock sorts all experts, stably and with NaN last, to choose some (sort.cu): here the
// rank of an expert is the number of experts before it in that order, and the last top_k write their indices. Weights are
// added as by `row_reduce_simple`: by one lane in turn, or by two whose sums are then added.

#include "cuda/depend.cuh"
#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "cuda/rows.cuh"
#include "moe_router/moe_router.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

constexpr int kThreads = 1024;
constexpr int kMostExperts = 256;
constexpr int kMostChosen = 16;

template <typename T>
struct Router {
  const T* logits; // [tokens, experts]
  uint32_t* indices; // [tokens, top_k]
  T* weights; // [tokens, top_k]
  int experts, top_k;
  bool normalize;
};

__device__ inline float max_over_warp(float v) {
  for (int apart = 16; apart > 0; apart /= 2) {
    float other = __shfl_xor_sync(0xffffffff, v, apart);
    v = v < other ? other : v;
  }
  return v;
}

// Scores in the order of stock's sort: none is negative, and NaN comes last.
template <typename T>
__device__ inline uint32_t sort_key(T score) {
  float value = static_cast<float>(score);
  return isnan(value) ? 0xffffffff : __float_as_uint(value);
}

// Scores of all experts, by one warp.
template <typename T>
__device__ void softmax(const T* logits, T* scores, uint32_t* keys, int experts, int lane) {
  float values[kReads<T>];
  float most = -3.402823466e+38f;
#pragma unroll
  for (int i = 0; i < kReads<T>; i++) {
    int expert = lane * kReads<T> + i;
    values[i] = expert < experts ? static_cast<float>(logits[expert]) : -INFINITY;
    most = most < values[i] ? values[i] : most;
  }
  float sum = __expf(values[0] - most);
#pragma unroll
  for (int i = 1; i < kReads<T>; i++) {
    sum = __fadd_rn(sum, __expf(values[i] - most));
  }
  float before = most;
  most = max_over_warp(most);
  sum = sum_over_warp(__fmul_rn(sum, __expf(before - most)));
  float factor = __fdiv_rn(1.0f, sum);
#pragma unroll
  for (int i = 0; i < kReads<T>; i++) {
    int expert = lane * kReads<T> + i;
    if (expert < experts) {
      T score = to<T>(__fmul_rn(__expf(values[i] - most), factor));
      scores[expert] = score;
      keys[expert] = sort_key(score);
    }
  }
}

template <typename T>
__global__ __launch_bounds__(kThreads) void moe_router(const __grid_constant__ Router<T> p) {
  __shared__ T scores[kMostExperts];
  __shared__ uint32_t keys[kMostExperts];
  __shared__ uint32_t chosen[kMostChosen];
  int64_t token = blockIdx.x;
  wait_for_inputs();
  let_next_begin();
  if (threadIdx.x < 32) {
    softmax(p.logits + token * p.experts, scores, keys, p.experts, threadIdx.x);
  }
  __syncthreads();
  // several lanes count for one expert
  int parts = p.experts * 8 <= kThreads ? 8 : 4;
  int expert = threadIdx.x / parts, part = threadIdx.x % parts;
  uint32_t mine = expert < p.experts ? keys[expert] : 0;
  int rank = 0;
  for (int other = part; other < p.experts; other += parts) {
    uint32_t its = keys[other];
    rank += its < mine || (its == mine && other < expert);
  }
  for (int apart = parts / 2; apart > 0; apart /= 2) {
    rank += __shfl_xor_sync(0xffffffff, rank, apart);
  }
  int place = rank - (p.experts - p.top_k);
  if (part == 0 && expert < p.experts && place >= 0) {
    chosen[place] = expert;
  }
  __syncthreads();
  if (threadIdx.x >= p.top_k) {
    return;
  }
  uint32_t choice = chosen[threadIdx.x];
  T weight = scores[choice];
  if (p.normalize) {
    T sums[2] = {to<T>(0.0f), to<T>(0.0f)};
    for (int k = 0; k < p.top_k; k++) {
      T& sum = sums[k / kReads<T>];
      sum = plus(sum, scores[chosen[k]]);
    }
    weight = weight / plus(sums[0], sums[1]);
  }
  p.indices[token * p.top_k + threadIdx.x] = choice;
  p.weights[token * p.top_k + threadIdx.x] = weight;
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
        std::get<8>(state)};
    unsigned tokens = logits.size() / logits.shape(-1);
    launch(encoder, moe_router<T>, tokens, kThreads, 0, {logits}, {indices, weights}, parameters);
  });
}

std::string refuse_on_cuda(const Request& r) {
  int64_t reads = 16 / static_cast<int64_t>(r.dtype.size());
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
  return gpu_backend<MoERouter, eval>(refuse_on_cuda);
}

} // namespace zmlx
