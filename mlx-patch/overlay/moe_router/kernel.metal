// From router logits to the experts of a token, in argpartition's order, and their weights.
//
// Idea: a threadgroup has the row of a token in threadgroup memory from its scores to its weights; what stock's ops hand on
// through memory is rounded as they round it. Argpartition is a stable sort on Metal, so an expert's place is the number of
// those before it, which its thread counts. Bound by latency: experts * 4 comparisons a thread.
//
//   kernels   zmlx_moe_router_<type>_<scores>_<weights>, each of float, float16_t, bfloat16_t: the type of the logits, the type
//             that scores are computed in (that of the logits, or float), the type of the weights
//   grid      threadgroups (tokens, 1, 1) of (32 * ceil(experts / 128), 1, 1) threads, as stock's softmax
//   buffers   0 logits [tokens, experts]  1 selection bias [experts], where the params name its type
//             2 indices [tokens, top_k] (uint32)  3 weights [tokens, top_k]  4 MoeRouterParams (kernel_params.h)
//   layout    everything is contiguous
//   limits    1,024 experts, of which 64 are chosen: longer rows stock adds in another order

#include "moe_router/kernel.h"

template <typename T, typename C, typename W>
[[kernel]] void zmlx_moe_router(
    const device T* logits [[buffer(0)]],
    const device float* selection_bias [[buffer(1)]],
    device uint32_t* indices [[buffer(2)]],
    device W* weights [[buffer(3)]],
    constant zmlx::MoeRouterParams& params [[buffer(4)]],
    uint token [[threadgroup_position_in_grid]],
    uint lid [[thread_position_in_threadgroup]],
    uint size [[threads_per_threadgroup]],
    uint simd_gid [[simdgroup_index_in_threadgroup]],
    uint simd_lid [[thread_index_in_simdgroup]]) {
  using namespace zmlx;
  threadgroup float gates[router_max_experts];
  threadgroup float keys[router_max_experts];
  threadgroup float groups[router_max_experts / 2];
  threadgroup float chosen[router_max_top_k];
  threadgroup float maxima[router_simdgroups];
  threadgroup float sums[router_simdgroups];
  const int experts = params.num_experts, top_k = params.top_k;
  const int first = lid * router_reads, end = min(first + router_reads, experts);
  logits += token * int64_t(experts);
  indices += token * int64_t(top_k);
  weights += token * int64_t(top_k);

  for (int i = first; i < end; i++) {
    const C logit = static_cast<C>(logits[i]);
    gates[i] = static_cast<float>(params.scoring == 1 ? Sigmoid()(logit) : logit);
  }
  if (params.scoring == 0 && params.precise != 0) {
    softmax_row<C, float>(gates, experts, maxima, sums, lid, simd_gid, simd_lid);
  } else if (params.scoring == 0) {
    softmax_row<C, C>(gates, experts, maxima, sums, lid, simd_gid, simd_lid);
  }
  for (int i = first; i < end; i++) {
    keys[i] = params.bias_type != 0 ? Add()(gates[i], bias_of(selection_bias, i, params.bias_type)) : gates[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  if (params.num_groups > 1) {
    const int members = experts / params.num_groups;
    for (int g = lid; g < params.num_groups; g += size) {
      const threadgroup float* group = keys + g * members;
      groups[g] = params.bias_type != 0 ? best_two<float>(group, members) : best_two<C>(group, members);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const int dropped = params.num_groups - params.top_k_groups;
    for (int i = first; i < end; i++) {
      if (place_of(groups, i / members, params.num_groups, false) < dropped) {
        keys[i] = 0;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  for (int i = first; i < end; i++) {
    const int place = place_of(keys, i, experts, params.descending != 0);
    const int slot = params.descending != 0 ? place : place - (experts - top_k);
    if (slot >= 0 && slot < top_k) {
      indices[slot] = i;
      chosen[slot] = gates[i];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (params.scoring == 2 && params.precise != 0) {
    softmax_row<C, float>(chosen, top_k, maxima, sums, lid, simd_gid, simd_lid);
  } else if (params.scoring == 2) {
    softmax_row<C, C>(chosen, top_k, maxima, sums, lid, simd_gid, simd_lid);
  }
  for (int slot = lid; slot < top_k; slot += size) {
    weights[slot] = static_cast<W>(weight_of<C>(chosen, slot, params));
  }
}

#ifndef ZMLX_NO_INSTANCES
// clang-format off
#define instantiate_router(type, scores, weights) \
  instantiate_kernel("zmlx_moe_router_" #type "_" #scores "_" #weights, zmlx_moe_router, type, scores, weights)

#define instantiate_router_weights(type, scores) \
  instantiate_router(type, scores, float) \
  instantiate_router(type, scores, float16_t) \
  instantiate_router(type, scores, bfloat16_t)

instantiate_router_weights(float, float)
instantiate_router_weights(float16_t, float)
instantiate_router_weights(float16_t, float16_t)
instantiate_router_weights(bfloat16_t, float)
instantiate_router_weights(bfloat16_t, bfloat16_t)
// clang-format on
#endif
