// What the lanes of a warp have together.

#pragma once

namespace zmlx::on_cuda {

// Adds the lanes' `kSums` sums, each as sum_over_warp does, in little more than half as many steps: afterwards a lane has the
// one of the number lane / (32 / kSums). `sums` is used up.
template <int kSums, int kApart = 16, int kMemory>
__device__ float sums_over_warp(float (&sums)[kMemory], int lane) {
  if constexpr (kApart == 0) {
    return sums[0];
  } else if constexpr (kSums == 1) {
    sums[0] = __fadd_rn(sums[0], __shfl_xor_sync(0xffffffff, sums[0], kApart));
    return sums_over_warp<1, kApart / 2>(sums, lane);
  } else {
    constexpr int kHalf = kSums / 2;
    bool high = lane & kApart;
#pragma unroll
    for (int i = 0; i < kHalf; i++) {
      float kept = high ? sums[i + kHalf] : sums[i], sent = high ? sums[i] : sums[i + kHalf];
      sums[i] = __fadd_rn(kept, __shfl_xor_sync(0xffffffff, sent, kApart));
    }
    return sums_over_warp<kHalf, kApart / 2>(sums, lane);
  }
}

// The largest of the lanes' values; NaN where one of them is that and not negative.
__device__ inline float max_over_warp(float v) {
  int bits = __float_as_int(v);
  int most = __reduce_max_sync(0xffffffff, bits ^ (bits >> 31 & 0x7fffffff));
  return __int_as_float(most ^ (most >> 31 & 0x7fffffff));
}

} // namespace zmlx::on_cuda
