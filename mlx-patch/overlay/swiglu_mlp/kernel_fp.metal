// activation(x @ gate^T) * (x @ up^T) of one row of x, weights in mxfp4, mxfp8 or nvfp4. As kernel.metal, which has the grid, the
// buffers and what they hold; scales are bytes, and there is nothing in buffers 5 and 6.
//
//   kernels   zmlx_swiglu_mlp[_fast]_<type>_gs_<group_size>_b_<bits>_<mode>
//             type float, float16_t, bfloat16_t; mxfp4: gs_32_b_4, mxfp8: gs_32_b_8, nvfp4: gs_16_b_4
//   fast      N % 8 == 0 and K a multiple of 512 (8 bits: 256)

#include "metal/fp_rows.h"
#include "metal/swiglu_rows.h"
#include "swiglu_mlp/kernel_params.h"

template <typename T, int group_size, int bits, bool fast>
[[kernel]] void zmlx_fp_swiglu_mlp(
    const device T* x [[buffer(0)]],
    const device uint32_t* gate_w [[buffer(1)]],
    const device uint8_t* gate_scales [[buffer(2)]],
    const device uint32_t* up_w [[buffer(3)]],
    const device uint8_t* up_scales [[buffer(4)]],
    device T* y [[buffer(7)]],
    constant zmlx::SwigluMlpParams& params [[buffer(8)]],
    const device T* gate_bias [[buffer(9)]],
    const device T* up_bias [[buffer(10)]],
    uint3 tid [[threadgroup_position_in_grid]],
    uint simd_gid [[simdgroup_index_in_threadgroup]],
    uint simd_lid [[thread_index_in_simdgroup]]) {
  using namespace zmlx;
  using Rows = FpRows<T, group_size, bits, fast ? 2 : 1>;
  const int first_row = qmv_first_row(tid, simd_gid);
  if (first_row >= params.N) {
    return;
  }
  Rows rows[2] = {
      Rows(gate_w, gate_scales, params.K, first_row, simd_lid), Rows(up_w, up_scales, params.K, first_row, simd_lid)};
  if (params.has_bias != 0) {
    gate_bias += first_row;
    up_bias += first_row;
  }
  swiglu_rows<fast>(rows, x, gate_bias, up_bias, y + first_row, params, first_row, simd_lid);
}

#ifndef ZMLX_NO_INSTANCES
// clang-format off
#define instantiate_swiglu_mlp(type, mode, group_size, bits) \
  instantiate_kernel("zmlx_swiglu_mlp_fast_" #type "_gs_" #group_size "_b_" #bits "_" #mode, \
      zmlx_fp_swiglu_mlp, type, group_size, bits, true) \
  instantiate_kernel("zmlx_swiglu_mlp_" #type "_gs_" #group_size "_b_" #bits "_" #mode, \
      zmlx_fp_swiglu_mlp, type, group_size, bits, false)

#define instantiate_swiglu_mlp_types(mode, group_size, bits) \
  instantiate_swiglu_mlp(float, mode, group_size, bits) \
  instantiate_swiglu_mlp(float16_t, mode, group_size, bits) \
  instantiate_swiglu_mlp(bfloat16_t, mode, group_size, bits)

instantiate_swiglu_mlp_types(mxfp4, 32, 4)
instantiate_swiglu_mlp_types(mxfp8, 32, 8)
instantiate_swiglu_mlp_types(nvfp4, 16, 4)
// clang-format on
#endif
