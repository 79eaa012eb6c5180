// activation(x @ gate[rhs]^T) * (x @ up[rhs]^T) over routed experts, affine weights.
//
// Idea: one simdgroup computes 4 rows of gate and the same 4 of up, reading its x once, with the partial sums, the order of
// additions and the roundings of MLX's affine_gather_qmv(_fast), sigmoid and multiply. So the bits are those of stock's
// launches. Bound by the bytes of the weights, which are read once, as in stock.
//
//   kernels   zmlx_gather_qmm_swiglu[_fast]_<type>_gs_<group_size>_b_<bits>
//             type float, float16_t, bfloat16_t; group_size 32, 64, 128; bits 2, 3, 4, 5, 6, 8
//   fast      where MLX's gather_qmv takes its fast kernel: N % 8 == 0 and K a multiple of 512 (6 and 8 bits: 256). The two
//             give different bits, so stock's rule decides, not taste.
//   grid      threadgroups (M, ceil(N / 8), number of products) of (32, 2, 1) threads
//   buffers   0 x  1 lhs_indices  2 rhs_indices  3 gate_w  4 gate_scales  5 up_w  6 up_scales  7 gate_biases  8 up_biases
//             9 y [.., M, N]  10 GatherQmmSwigluParams (kernel_params.h)  11 shape of the indices (int32)
//             12 strides of lhs_indices  13 strides of rhs_indices (int64)
//             14 bias of gate  15 bias of up, [experts, N]: where params.has_bias is not 0
//   layout    rows of x, w, scales and biases are contiguous, and so are the rows of one matrix; y is contiguous
//   limits    indices are not checked; ZMLX_NO_INSTANCES leaves the instances to the host, for compilation at run time

#include "metal/affine_rows.h"
#include "gather_qmm_swiglu/kernel_params.h"
#include "metal/swiglu_rows.h"

template <typename T, int group_size, int bits, bool fast>
[[kernel]] void zmlx_gather_qmm_swiglu(
    const device T* x [[buffer(0)]],
    const device uint32_t* lhs_indices [[buffer(1)]],
    const device uint32_t* rhs_indices [[buffer(2)]],
    const device uint32_t* gate_w [[buffer(3)]],
    const device T* gate_scales [[buffer(4)]],
    const device uint32_t* up_w [[buffer(5)]],
    const device T* up_scales [[buffer(6)]],
    const device T* gate_biases [[buffer(7)]],
    const device T* up_biases [[buffer(8)]],
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
  using Rows = AffineRows<T, group_size, bits, fast && bits != 2 ? 2 : 1>;
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
          gate_biases + expert * params.gate_biases_stride,
          params.K,
          first_row,
          simd_lid),
      Rows(
          up_w + expert * params.up_w_stride,
          up_scales + expert * params.up_scales_stride,
          up_biases + expert * params.up_biases_stride,
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
#define instantiate_swiglu(type, group_size, bits) \
  instantiate_kernel("zmlx_gather_qmm_swiglu_fast_" #type "_gs_" #group_size "_b_" #bits, \
      zmlx_gather_qmm_swiglu, type, group_size, bits, true) \
  instantiate_kernel("zmlx_gather_qmm_swiglu_" #type "_gs_" #group_size "_b_" #bits, \
      zmlx_gather_qmm_swiglu, type, group_size, bits, false)

#define instantiate_swiglu_types(group_size, bits) \
  instantiate_swiglu(float, group_size, bits) \
  instantiate_swiglu(float16_t, group_size, bits) \
  instantiate_swiglu(bfloat16_t, group_size, bits)

#define instantiate_swiglu_groups(bits) \
  instantiate_swiglu_types(32, bits) \
  instantiate_swiglu_types(64, bits) \
  instantiate_swiglu_types(128, bits)

instantiate_swiglu_groups(2)
instantiate_swiglu_groups(3)
instantiate_swiglu_groups(4)
instantiate_swiglu_groups(5)
instantiate_swiglu_groups(6)
instantiate_swiglu_groups(8)
// clang-format on
#endif
