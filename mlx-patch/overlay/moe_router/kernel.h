// The steps of moe_router's kernel, each as MLX's own kernel does it.

#pragma once

#include "mlx/backend/metal/kernels/utils.h"
#include "mlx/backend/metal/kernels/binary_ops.h"
#include "mlx/backend/metal/kernels/sort.h"
#include "mlx/backend/metal/kernels/unary_ops.h"

#include "moe_router/kernel_params.h"

namespace zmlx {

// Consecutive numbers that a thread has of a row.
static constexpr constant int router_reads = 4;
static constexpr constant int router_simdgroups = 32;
static constexpr constant int router_max_experts = 1024;
static constexpr constant int router_max_top_k = 64;

// softmax_single_row of MLX, accumulated in A: `row` has `size` numbers of C and becomes their softmax. Threads behind its
// end add zeros. All threads of the threadgroup call it; `maxima` and `sums` have router_simdgroups numbers, of A.
template <typename C, typename A>
METAL_FUNC void softmax_row(
    threadgroup float* row,
    int size,
    threadgroup float* maxima,
    threadgroup float* sums,
    int lid,
    uint simd_gid,
    uint simd_lid) {
  const int first = lid * router_reads;
  A values[router_reads];
  for (int i = 0; i < router_reads; i++) {
    values[i] = first + i < size ? A(row[first + i]) : Limits<A>::min;
  }
  if (simd_gid == 0) {
    maxima[simd_lid] = Limits<A>::min;
    sums[simd_lid] = 0;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  A maximum = Limits<A>::finite_min;
  for (int i = 0; i < router_reads; i++) {
    maximum = (maximum < values[i]) ? values[i] : maximum;
  }
  maximum = simd_max(maximum);
  if (simd_lid == 0) {
    maxima[simd_gid] = maximum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // each simdgroup for itself: of maxima the order is no matter
  maximum = simd_max(A(maxima[simd_lid]));

  A sum = 0;
  for (int i = 0; i < router_reads; i++) {
    values[i] = fast::exp(values[i] - maximum);
    sum += values[i];
  }
  sum = simd_sum(sum);
  if (simd_lid == 0) {
    sums[simd_gid] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const A inverse = 1 / simd_sum(A(sums[simd_lid]));
  for (int i = 0; i < router_reads && first + i < size; i++) {
    row[first + i] = C(values[i] * inverse);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The place of key `i` among `count` in a stable sort, which MLX's argpartition is on Metal; NaN comes last.
METAL_FUNC int place_of(const threadgroup float* keys, int i, int count, bool descending) {
  LessThan<float> less;
  const float key = descending ? -keys[i] : keys[i];
  int place = 0;
  for (int j = 0; j < count; j++) {
    const float other = descending ? -keys[j] : keys[j];
    place += j < i ? !less(key, other) : less(other, key);
  }
  return place;
}

// The sum of the two largest of `count` keys of K, as topk and sum make it.
template <typename K>
METAL_FUNC float best_two(const threadgroup float* keys, int count) {
  LessThan<float> less;
  float first = keys[0], second = keys[1];
  if (less(first, second)) {
    thread_swap(first, second);
  }
  for (int i = 2; i < count; i++) {
    const float key = keys[i];
    if (less(second, key)) {
      second = less(first, key) ? first : key;
      first = less(first, key) ? key : first;
    }
  }
  return static_cast<float>(static_cast<K>(static_cast<K>(second) + static_cast<K>(first)));
}

// A number of the selection bias.
METAL_FUNC float bias_of(const device float* bias, int i, int type) {
  return type == 1 ? bias[i]
      : type == 2  ? static_cast<float>(((const device half*)bias)[i])
                   : static_cast<float>(((const device bfloat16_t*)bias)[i]);
}

// The weight of the chosen expert `slot`, from the scores of all that are chosen.
template <typename C>
METAL_FUNC C weight_of(const threadgroup float* chosen, int slot, constant MoeRouterParams& params) {
  C weight = static_cast<C>(chosen[slot]);
  if (params.normalize != 0) {
    // row_reduce_small; one number is copied
    C total = 0;
    for (int i = 0; i < params.top_k; i++) {
      total = params.top_k == 1 ? weight : static_cast<C>(static_cast<C>(chosen[i]) + total);
    }
    if (params.epsilon != 0) {
      total = Add()(total, static_cast<C>(params.epsilon));
    }
    weight = Divide()(weight, total);
  }
  return params.scale != 1 ? Multiply()(weight, static_cast<C>(params.scale)) : weight;
}

} // namespace zmlx
