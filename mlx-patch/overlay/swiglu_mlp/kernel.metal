// activation(x @ gate^T) * (x @ up^T) of one row of x, affine weights.
//
// Idea: as gather_qmm_swiglu, whose rows these are, without indices; the bits are those of MLX's affine_qmv(_fast), sigmoid
// and multiply.
//
//   kernels   zmlx_swiglu_mlp[_fast]_<type>_gs_<group_size>_b_<bits>
//             type float, float16_t, bfloat16_t; group_size 32, 64, 128; bits 2, 3, 4, 5, 6, 8
//   fast      where MLX's qmv takes its fast kernel: N % 8 == 0 and K a multiple of 512 (6 and 8 bits: 256)
//   grid      threadgroups (1, ceil(N / 8), 1) of (32, 2, 1) threads
//   buffers   0 x [K]  1 gate_w  2 gate_scales  3 up_w  4 up_scales  5 gate_biases  6 up_biases  7 y [N]
//             8 SwigluMlpParams (kernel_params.h)  9 bias of gate  10 bias of up, [N]: where params.has_bias is not 0
//   layout    everything is contiguous
//   limits    where K is 64 or 128 and bits a power of two, stock runs a kernel of another kind; ZMLX_NO_INSTANCES leaves the
//             instances to the host, for compilation at run time

#include "metal/affine_rows.h"
#include "metal/swiglu_rows.h"
#include "swiglu_mlp/kernel_params.h"

template <typename T, int group_size, int bits, bool fast>
[[kernel]] void zmlx_swiglu_mlp(
    const device T* x [[buffer(0)]],
    const device uint32_t* gate_w [[buffer(1)]],
    const device T* gate_scales [[buffer(2)]],
    const device uint32_t* up_w [[buffer(3)]],
    const device T* up_scales [[buffer(4)]],
    const device T* gate_biases [[buffer(5)]],
    const device T* up_biases [[buffer(6)]],
    device T* y [[buffer(7)]],
    constant zmlx::SwigluMlpParams& params [[buffer(8)]],
    const device T* gate_bias [[buffer(9)]],
    const device T* up_bias [[buffer(10)]],
    uint3 tid [[threadgroup_position_in_grid]],
    uint simd_gid [[simdgroup_index_in_threadgroup]],
    uint simd_lid [[thread_index_in_simdgroup]]) {
  using namespace zmlx;
  using Rows = AffineRows<T, group_size, bits, fast && bits != 2 ? 2 : 1>;
  const int first_row = qmv_first_row(tid, simd_gid);
  if (first_row >= params.N) {
    return;
  }
  Rows rows[2] = {
      Rows(gate_w, gate_scales, gate_biases, params.K, first_row, simd_lid),
      Rows(up_w, up_scales, up_biases, params.K, first_row, simd_lid)};
  if (params.has_bias != 0) {
    gate_bias += first_row;
    up_bias += first_row;
  }
  swiglu_rows<fast>(rows, x, gate_bias, up_bias, y + first_row, params, first_row, simd_lid);
}

#ifndef ZMLX_NO_INSTANCES
// clang-format off
#define instantiate_swiglu_mlp(type, group_size, bits) \
  instantiate_kernel("zmlx_swiglu_mlp_fast_" #type "_gs_" #group_size "_b_" #bits, \
      zmlx_swiglu_mlp, type, group_size, bits, true) \
  instantiate_kernel("zmlx_swiglu_mlp_" #type "_gs_" #group_size "_b_" #bits, \
      zmlx_swiglu_mlp, type, group_size, bits, false)

#define instantiate_swiglu_mlp_types(group_size, bits) \
  instantiate_swiglu_mlp(float, group_size, bits) \
  instantiate_swiglu_mlp(float16_t, group_size, bits) \
  instantiate_swiglu_mlp(bfloat16_t, group_size, bits)

#define instantiate_swiglu_mlp_groups(bits) \
  instantiate_swiglu_mlp_types(32, bits) \
  instantiate_swiglu_mlp_types(64, bits) \
  instantiate_swiglu_mlp_types(128, bits)

instantiate_swiglu_mlp_groups(2)
instantiate_swiglu_mlp_groups(3)
instantiate_swiglu_mlp_groups(4)
instantiate_swiglu_mlp_groups(5)
instantiate_swiglu_mlp_groups(6)
instantiate_swiglu_mlp_groups(8)
// clang-format on
#endif
