// y = sum over the top_k experts of a token of scores[k] * (x[k] @ down[rhs[k]]^T + bias[rhs[k]]), affine weights.
//
// Idea: a threadgroup has 4 rows of y; its simdgroups take the experts of a token by turns, in the order of additions of MLX's
// affine_gather_qmv(_fast), and leave their weighted products in threadgroup memory, where one lane a row adds them in the
// order of MLX's col_reduce_small. What the memory holds has been rounded, so no product is fused with a sum.
//
//   kernels   zmlx_gather_qmm_combine[_fast]_<type>_gs_<group_size>_b_<bits>
//             type float, float16_t, bfloat16_t; group_size 32, 64, 128; bits 2, 3, 4, 5, 6, 8
//   fast      where MLX's gather_qmv takes its fast kernel: N % 8 == 0 and K a multiple of 512 (6 and 8 bits: 256)
//   grid      threadgroups (ceil(N / 4), number of tokens, 1) of (32, min(top_k, 8), 1) threads
//   buffers   0 x  1 rhs_indices  2 scores  3 w  4 scales  5 biases  6 y [.., N]  7 GatherQmmCombineParams (kernel_params.h)
//             8 bias of the projection, [experts, N]: where params.has_bias is not 0
//   layout    everything is contiguous but for the distance between experts
//   limits    top_k <= 31: from 32 on stock sums in another order. Indices are not checked. ZMLX_NO_INSTANCES leaves the
//             instances to the host, for compilation at run time

#include "metal/affine_rows.h"
#include "gather_qmm_combine/kernel.h"

template <typename T, int group_size, int bits, bool fast>
[[kernel]] void zmlx_gather_qmm_combine(
    const device T* x [[buffer(0)]],
    const device uint32_t* rhs_indices [[buffer(1)]],
    const device T* scores [[buffer(2)]],
    const device uint32_t* w [[buffer(3)]],
    const device T* scales [[buffer(4)]],
    const device T* biases [[buffer(5)]],
    device T* y [[buffer(6)]],
    constant zmlx::GatherQmmCombineParams& params [[buffer(7)]],
    const device T* bias [[buffer(8)]],
    uint3 tid [[threadgroup_position_in_grid]],
    uint3 size [[threads_per_threadgroup]],
    uint simd_gid [[simdgroup_index_in_threadgroup]],
    uint simd_lid [[thread_index_in_simdgroup]]) {
  using namespace zmlx;
  using Rows = AffineRows<T, group_size, bits, fast && bits != 2 ? 2 : 1>;
  threadgroup float weighted[combine_max_top_k * qmv_rows];
  const int first_row = tid.x * qmv_rows;
  const int last_row = fast ? qmv_rows - 1 : min(params.N - first_row, qmv_rows) - 1;
  const int first_slot = tid.y * params.top_k;
  for (int k = simd_gid; k < params.top_k; k += size.y) {
    const uint expert = rhs_indices[first_slot + k];
    Rows rows(
        w + expert * params.w_stride,
        scales + expert * params.scales_stride,
        biases + expert * params.biases_stride,
        params.K,
        first_row,
        simd_lid);
    const device T* expert_bias = params.has_bias != 0 ? bias + expert * params.bias_stride + first_row : bias;
    weighted_rows<fast>(
        rows,
        x + int64_t(first_slot + k) * params.K,
        expert_bias,
        scores,
        first_slot + k,
        weighted + k * qmv_rows,
        params,
        last_row,
        simd_lid);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int row = simd_lid;
  if (simd_gid == 0 && row <= last_row) {
    const threadgroup float* column = weighted + row;
    y[int64_t(tid.y) * params.N + first_row + row] = params.wide_scores != 0
        ? static_cast<T>(column_sum<float>(column, params.top_k))
        : column_sum<T>(column, params.top_k);
  }
}

#ifndef ZMLX_NO_INSTANCES
// clang-format off
#define instantiate_combine(type, group_size, bits) \
  instantiate_kernel("zmlx_gather_qmm_combine_fast_" #type "_gs_" #group_size "_b_" #bits, \
      zmlx_gather_qmm_combine, type, group_size, bits, true) \
  instantiate_kernel("zmlx_gather_qmm_combine_" #type "_gs_" #group_size "_b_" #bits, \
      zmlx_gather_qmm_combine, type, group_size, bits, false)

#define instantiate_combine_types(group_size, bits) \
  instantiate_combine(float, group_size, bits) \
  instantiate_combine(float16_t, group_size, bits) \
  instantiate_combine(bfloat16_t, group_size, bits)

#define instantiate_combine_groups(bits) \
  instantiate_combine_types(32, bits) \
  instantiate_combine_types(64, bits) \
  instantiate_combine_types(128, bits)

instantiate_combine_groups(2)
instantiate_combine_groups(3)
instantiate_combine_groups(4)
instantiate_combine_groups(5)
instantiate_combine_groups(6)
instantiate_combine_groups(8)
// clang-format on
#endif
