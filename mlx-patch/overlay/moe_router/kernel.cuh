// Softmax, choice and weights of a token's experts by one block; cuda.cu launches it.
//
// The first warp takes the softmax in the order of stock (mlx/backend/cuda/softmax.cu, of as many values as one warp reads at
// once). Stock sorts all experts, stably and with NaN last, to choose some (sort.cu): here the rank of an expert is the number
// of experts before it in that order, and the last top_k write their indices. Weights are added as by `row_reduce_simple`: by
// one lane in turn, or by two whose sums are then added.
// Where the softmax is over the chosen experts, it is that of as many values.

#pragma once

#include "cuda/rows.cuh"

namespace zmlx::on_cuda {

// Most threads of a block, experts, and experts of a token.
inline constexpr int kMostRouterThreads = 1024;
inline constexpr int kMostRouted = 256;
inline constexpr int kMostChosen = 16;

template <typename T>
struct Router {
  const T* logits; // [tokens, experts]
  uint32_t* indices; // [tokens, top_k]
  T* weights; // [tokens, top_k]
  int experts, top_k;
  bool normalize;
  bool of_top_k; // softmax over the chosen experts alone
};

__device__ inline float max_over_warp(float v) {
  for (int apart = 16; apart > 0; apart /= 2) {
    float other = __shfl_xor_sync(0xffffffff, v, apart);
    v = v < other ? other : v;
  }
  return v;
}

// Scores in the order of stock's sort: NaN comes last, and both zeros are one.
template <typename T>
__device__ inline uint32_t sort_key(T score) {
  float value = static_cast<float>(score) + 0.0f; // -0 becomes 0
  uint32_t bits = __float_as_uint(value);
  return isnan(value) ? 0xffffffff : bits >> 31 ? ~bits : bits | 0x80000000;
}

// Scores of all experts, by one warp.
template <typename T>
__device__ void softmax(const T* logits, T* scores, int experts, int lane) {
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
      scores[expert] = to<T>(__fmul_rn(__expf(values[i] - most), factor));
    }
  }
}

struct Rank {
  int expert;
  int rank; // how many experts come before it, those of equal keys in their order
  bool tells; // the thread, one of those that count for it
};

// By all threads of a block, which has one at least for each expert.
__device__ inline Rank rank_of_expert(const uint32_t* keys, int experts) {
  // several lanes count for one expert
  int parts = 8;
  while (experts * parts > static_cast<int>(blockDim.x)) {
    parts /= 2;
  }
  int expert = threadIdx.x / parts, part = threadIdx.x % parts;
  uint32_t mine = expert < experts ? keys[expert] : 0;
  int rank = 0;
  for (int other = part; other < experts; other += parts) {
    uint32_t its = keys[other];
    rank += its < mine || (its == mine && other < expert);
  }
  for (int apart = parts / 2; apart > 0; apart /= 2) {
    rank += __shfl_xor_sync(0xffffffff, rank, apart);
  }
  return {expert, rank, part == 0 && expert < experts};
}

// One token, by a block of a thread at least for each expert. The logits may lie in shared memory.
template <typename T>
__device__ void route(const Router<T>& p, int64_t token) {
  __shared__ T scores[kMostRouted];
  __shared__ uint32_t keys[kMostRouted];
  __shared__ uint32_t chosen[kMostChosen];
  auto* logits = p.logits + token * p.experts;
  if (threadIdx.x < 32) {
    int lane = threadIdx.x;
    if (!p.of_top_k) {
      softmax(logits, scores, p.experts, lane);
      __syncwarp();
    }
    for (int expert = lane; expert < p.experts; expert += 32) {
      keys[expert] = sort_key(p.of_top_k ? logits[expert] : scores[expert]);
    }
  }
  __syncthreads();
  auto [expert, rank, tells] = rank_of_expert(keys, p.experts);
  int place = rank - (p.experts - p.top_k);
  if (tells && place >= 0) {
    chosen[place] = expert;
  }
  __syncthreads();
  if (p.of_top_k && threadIdx.x < 32) {
    int lane = threadIdx.x;
    __shared__ T gathered[kMostChosen];
    if (lane < p.top_k) {
      gathered[lane] = logits[chosen[lane]];
    }
    __syncwarp();
    softmax(gathered, scores, p.top_k, lane);
    __syncwarp();
  }
  if (threadIdx.x >= p.top_k) {
    return;
  }
  uint32_t choice = chosen[threadIdx.x];
  T weight = scores[p.of_top_k ? threadIdx.x : choice];
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

} // namespace zmlx::on_cuda
