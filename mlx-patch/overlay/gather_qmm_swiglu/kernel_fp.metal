// activation(x @ gate[rhs]^T) * (x @ up[rhs]^T) over routed experts, weights in mxfp4, mxfp8 or nvfp4. As kernel.metal, which has the
// grid, the buffers and what they hold; scales are bytes, and there is nothing in buffers 7 and 8.
//
//   kernels   zmlx_gather_qmm_swiglu[_fast]_<type>_gs_<group_size>_b_<bits>_<mode>
//             type float, float16_t, bfloat16_t; mxfp4: gs_32_b_4, mxfp8: gs_32_b_8, nvfp4: gs_16_b_4
//   fast      N % 8 == 0 and K a multiple of 512 (8 bits: 256)

#include "metal/fp_rows.h"
#include "gather_qmm_swiglu/kernel_params.h"
#include "metal/swiglu_rows.h"

template <typename T, int group_size, int bits, bool fast>
[[kernel]] void zmlx_fp_gather_qmm_swiglu(
    const device T* x [[buffer(0)]],
    const device uint32_t* lhs_indices [[buffer(1)]],
    const device uint32_t* rhs_indices [[buffer(2)]],
    const device uint32_t* gate_w [[buffer(3)]],
    const device uint8_t* gate_scales [[buffer(4)]],
    const device uint32_t* up_w [[buffer(5)]],
    const device uint8_t* up_scales [[buffer(6)]],
    device T* y [[buffer(9)]],
    constant zmlx::GatherQmmSwigluParams& params [[buffer(10)]],
    constant const int* shape [[buffer(11)]],
    constant const int64_t* lhs_strides [[buffer(12)]],
    constant const int64_t* rhs_strides [[buffer(13)]],
    const device T* gate_bias [[buffer(14)]],
    const device T* up_bias [[buffer(15)]],
    uint3 tid [[threadgroup_position_in_grid]],
    uint simd_gid [[simdgroup_index_in_threadgroup]],
    uint simd_lid [[thread_index_in_simdgroup]]) {
  using namespace zmlx;
  using Rows = FpRows<T, group_size, bits, fast ? 2 : 1>;
  const int first_row = qmv_first_row(tid, simd_gid);
  if (first_row >= params.N) {
    return;
  }
  const uint matrix = lhs_indices[broadcast_offset(tid.z, shape, lhs_strides, params.ndim)];
  const uint expert = rhs_indices[broadcast_offset(tid.z, shape, rhs_strides, params.ndim)];
  Rows rows[2] = {
      Rows(
          gate_w + expert * params.gate_w_stride,
          gate_scales + expert * params.gate_scales_stride,
          params.K,
          first_row,
          simd_lid),
      Rows(
          up_w + expert * params.up_w_stride,
          up_scales + expert * params.up_scales_stride,
          params.K,
          first_row,
          simd_lid)};
  x += matrix * params.x_stride + int64_t(tid.x) * params.K;
  y += (int64_t(tid.z) * params.M + tid.x) * params.N + first_row;
  if (params.has_bias != 0) {
    gate_bias += expert * params.gate_bias_stride + first_row;
    up_bias += expert * params.up_bias_stride + first_row;
  }
  swiglu_rows<fast>(rows, x, gate_bias, up_bias, y, params, first_row, simd_lid);
}

#ifndef ZMLX_NO_INSTANCES
// clang-format off
#define instantiate_swiglu(type, mode, group_size, bits) \
  instantiate_kernel("zmlx_gather_qmm_swiglu_fast_" #type "_gs_" #group_size "_b_" #bits "_" #mode, \
      zmlx_fp_gather_qmm_swiglu, type, group_size, bits, true) \
  instantiate_kernel("zmlx_gather_qmm_swiglu_" #type "_gs_" #group_size "_b_" #bits "_" #mode, \
      zmlx_fp_gather_qmm_swiglu, type, group_size, bits, false)

#define instantiate_swiglu_types(mode, group_size, bits) \
  instantiate_swiglu(float, mode, group_size, bits) \
  instantiate_swiglu(float16_t, mode, group_size, bits) \
  instantiate_swiglu(bfloat16_t, mode, group_size, bits)

instantiate_swiglu_types(mxfp4, 32, 4)
instantiate_swiglu_types(mxfp8, 32, 8)
instantiate_swiglu_types(nvfp4, 16, 4)
// clang-format on
#endif
