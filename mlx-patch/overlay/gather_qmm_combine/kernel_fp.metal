// The weighted sum of a token's experts, weights in mxfp4, mxfp8 or nvfp4. As kernel.metal, which has the grid, the buffers and
// what they hold; scales are bytes, and there is nothing in buffer 5.
//
//   kernels   zmlx_gather_qmm_combine[_fast]_<type>_gs_<group_size>_b_<bits>_<mode>
//             type float, float16_t, bfloat16_t; mxfp4: gs_32_b_4, mxfp8: gs_32_b_8, nvfp4: gs_16_b_4
//   fast      N % 8 == 0 and K a multiple of 512 (8 bits: 256)

#include "metal/fp_rows.h"
#include "gather_qmm_combine/kernel.h"

template <typename T, int group_size, int bits, bool fast>
[[kernel]] void zmlx_fp_gather_qmm_combine(
    const device T* x [[buffer(0)]],
    const device uint32_t* rhs_indices [[buffer(1)]],
    const device T* scores [[buffer(2)]],
    const device uint32_t* w [[buffer(3)]],
    const device uint8_t* scales [[buffer(4)]],
    device T* y [[buffer(6)]],
    constant zmlx::GatherQmmCombineParams& params [[buffer(7)]],
    const device T* bias [[buffer(8)]],
    uint3 tid [[threadgroup_position_in_grid]],
    uint3 size [[threads_per_threadgroup]],
    uint simd_gid [[simdgroup_index_in_threadgroup]],
    uint simd_lid [[thread_index_in_simdgroup]]) {
  using namespace zmlx;
  using Rows = FpRows<T, group_size, bits, fast ? 2 : 1>;
  threadgroup float weighted[combine_max_top_k * qmv_rows];
  const int first_row = tid.x * qmv_rows;
  const int last_row = fast ? qmv_rows - 1 : min(params.N - first_row, qmv_rows) - 1;
  const int first_slot = tid.y * params.top_k;
  for (int k = simd_gid; k < params.top_k; k += size.y) {
    const uint expert = rhs_indices[first_slot + k];
    Rows rows(
        w + expert * params.w_stride,
        scales + expert * params.scales_stride,
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
#define instantiate_combine(type, mode, group_size, bits) \
  instantiate_kernel("zmlx_gather_qmm_combine_fast_" #type "_gs_" #group_size "_b_" #bits "_" #mode, \
      zmlx_fp_gather_qmm_combine, type, group_size, bits, true) \
  instantiate_kernel("zmlx_gather_qmm_combine_" #type "_gs_" #group_size "_b_" #bits "_" #mode, \
      zmlx_fp_gather_qmm_combine, type, group_size, bits, false)

#define instantiate_combine_types(mode, group_size, bits) \
  instantiate_combine(float, mode, group_size, bits) \
  instantiate_combine(float16_t, mode, group_size, bits) \
  instantiate_combine(bfloat16_t, mode, group_size, bits)

instantiate_combine_types(mxfp4, 32, 4)
instantiate_combine_types(mxfp8, 32, 8)
instantiate_combine_types(nvfp4, 16, 4)
// clang-format on
#endif
