// sum = x + r and normed = sum / sqrt(mean(sum^2) + eps) * weight, over rows of D numbers.
//
// Idea: MLX's rms_single_row, whose threads keep their numbers in registers, with the residual added where it reads them. The
// sum is rounded before it is squared, as stock's is on its way through memory.
//
//   kernels   zmlx_add_rms_norm_<type>, type float, float16_t, bfloat16_t
//   grid      threadgroups (rows, 1, 1) of (32 * ceil(D / 128), 1, 1) threads
//   buffers   0 x  1 r  2 weight [D]  3 sum  4 normed  5 eps (float)  6 D (uint32)
//   layout    everything is contiguous
//   limits    D <= 4096: stock shares longer rows among as many threads as a threadgroup may have

#include "mlx/backend/metal/kernels/utils.h"
#include "mlx/backend/metal/kernels/binary_ops.h"

#include "metal/norm.h"

template <typename T>
[[kernel]] void zmlx_add_rms_norm(
    const device T* x [[buffer(0)]],
    const device T* r [[buffer(1)]],
    const device T* weight [[buffer(2)]],
    device T* sum [[buffer(3)]],
    device T* normed [[buffer(4)]],
    constant const float& eps [[buffer(5)]],
    constant const uint& size [[buffer(6)]],
    uint row [[threadgroup_position_in_grid]],
    uint lid [[thread_position_in_threadgroup]],
    uint simd_gid [[simdgroup_index_in_threadgroup]],
    uint simd_lid [[thread_index_in_simdgroup]]) {
  using namespace zmlx;
  threadgroup float sums[norm_simdgroups];
  threadgroup float inverse[1];
  const uint first = lid * norm_reads;
  const size_t start = row * size_t(size) + first;
  float values[norm_reads];
  for (uint i = 0; i < norm_reads; i++) {
    values[i] = 0;
    if (first + i < size) {
      const T added = Add()(x[start + i], r[start + i]);
      sum[start + i] = added;
      values[i] = added;
    }
  }
  const float scale = inverse_rms(values, eps, size, sums, inverse, simd_gid, simd_lid);
  for (uint i = 0; i < norm_reads; i++) {
    if (first + i < size) {
      normed[start + i] = weight[first + i] * static_cast<T>(values[i] * scale);
    }
  }
}

#ifndef ZMLX_NO_INSTANCES
// clang-format off
instantiate_kernel("zmlx_add_rms_norm_float", zmlx_add_rms_norm, float)
instantiate_kernel("zmlx_add_rms_norm_float16_t", zmlx_add_rms_norm, float16_t)
instantiate_kernel("zmlx_add_rms_norm_bfloat16_t", zmlx_add_rms_norm, bfloat16_t)
// clang-format on
#endif
