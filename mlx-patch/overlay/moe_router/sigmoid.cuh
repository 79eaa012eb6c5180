// Experts chosen by sigmoid scores, a block for a token, in place of up to eleven launches: casts, sigmoid, bias, sign, sort,
// gather, sum, epsilon, division, scale. Order and sums are as in kernel.cuh; scores are of the type that stock has them in,
// and the bias is added in float32.

#pragma once

#include "cuda/glu.cuh"
#include "moe_router/kernel.cuh"

namespace zmlx::on_cuda {

enum class FloatType { F32, F16, Bf16 };

// An array whose type is known when the kernel runs.
struct FloatArray {
  void* data;
  FloatType type;

  __device__ float operator[](int64_t i) const {
    switch (type) {
      case FloatType::F16:
        return static_cast<const __half*>(data)[i];
      case FloatType::Bf16:
        return static_cast<const __nv_bfloat16*>(data)[i];
      default:
        return static_cast<const float*>(data)[i];
    }
  }

  __device__ void store(int64_t i, float v) const {
    switch (type) {
      case FloatType::F16:
        static_cast<__half*>(data)[i] = to<__half>(v);
        return;
      case FloatType::Bf16:
        static_cast<__nv_bfloat16*>(data)[i] = to<__nv_bfloat16>(v);
        return;
      default:
        static_cast<float*>(data)[i] = v;
    }
  }
};

template <typename T>
struct SigmoidRouter {
  const T* logits; // [tokens, experts]
  FloatArray bias; // [experts], or null
  uint32_t* indices; // [tokens, top_k]
  FloatArray weights; // [tokens, top_k]
  int experts, top_k;
  bool descending, normalize;
  float epsilon, scale;
};

__device__ inline float sigmoid(float x) {
  float y = __fdiv_rn(1.0f, __fadd_rn(1.0f, cuda::std::exp(cuda::std::abs(x))));
  return x < 0 ? y : __fsub_rn(1.0f, y);
}

// `Score`: float, or the type of the logits.
template <typename Score, typename T>
__device__ void route_by_sigmoid(const SigmoidRouter<T>& p, int64_t token) {
  __shared__ Score scores[kMostRouted];
  __shared__ uint32_t keys[kMostRouted];
  __shared__ uint32_t chosen[kMostChosen];
  for (int expert = threadIdx.x; expert < p.experts; expert += blockDim.x) {
    Score score = sigmoid(to<Score>(static_cast<float>(p.logits[token * p.experts + expert])));
    float key = static_cast<float>(score);
    key = p.bias.data ? __fadd_rn(key, p.bias[expert]) : key;
    scores[expert] = score;
    keys[expert] = sort_key(p.descending ? -key : key);
  }
  __syncthreads();
  auto [expert, rank, tells] = rank_of_expert(keys, p.experts);
  int place = p.descending ? rank : rank - (p.experts - p.top_k);
  if (tells && place >= 0 && place < p.top_k) {
    chosen[place] = expert;
  }
  __syncthreads();
  if (threadIdx.x >= p.top_k) {
    return;
  }
  uint32_t choice = chosen[threadIdx.x];
  Score weight = scores[choice];
  if (p.normalize) {
    Score sums[2] = {to<Score>(0.0f), to<Score>(0.0f)};
    for (int k = 0; k < p.top_k; k++) {
      Score& sum = sums[k / kReads<Score>];
      sum = plus(sum, scores[chosen[k]]);
    }
    Score total = plus(sums[0], sums[1]);
    if (p.epsilon != 0) {
      total = plus(total, to<Score>(p.epsilon));
    }
    weight = weight / total;
  }
  if (p.scale != 1) {
    weight = times(weight, to<Score>(p.scale));
  }
  int64_t at = token * p.top_k + threadIdx.x;
  p.indices[at] = choice;
  p.weights.store(at, static_cast<float>(weight));
}

} // namespace zmlx::on_cuda
