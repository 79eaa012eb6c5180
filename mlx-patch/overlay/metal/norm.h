// The root of a row's mean square, in the order of MLX's rms_single_row.

#pragma once

namespace zmlx {

// Consecutive numbers of a row that a thread has.
static constexpr constant int norm_reads = 4;
static constexpr constant int norm_simdgroups = 32;

// 1 / sqrt(mean(x^2) + eps) of a row of `size` numbers: `x` is the thread's share, zeros behind the end. All threads of the
// threadgroup call it. `sums` has norm_simdgroups numbers, `inverse` one.
METAL_FUNC float inverse_rms(
    const thread float* x,
    float eps,
    uint size,
    threadgroup float* sums,
    threadgroup float* inverse,
    uint simd_gid,
    uint simd_lid) {
  float sum = 0;
  for (int i = 0; i < norm_reads; i++) {
    sum += x[i] * x[i];
  }
  sum = simd_sum(sum);
  if (simd_gid == 0) {
    sums[simd_lid] = 0;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simd_lid == 0) {
    sums[simd_gid] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simd_gid == 0) {
    sum = simd_sum(sums[simd_lid]);
    if (simd_lid == 0) {
      inverse[0] = metal::precise::rsqrt(sum / size + eps);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return inverse[0];
}

} // namespace zmlx
