// A row of quantized weights by a vector, a warp, with the bits of stock's `gather_qmv`
// (mlx/backend/cuda/quantized/qmm/qmv.cu), which runs for fewer than eight rows: a lane takes 16 values (8 of weights of 8
// bits) in turn with the others and adds each to a sum of its own, in the vector's type for 4 bits and in float32 for 8;
// then its sums in their order, then those of the lanes.

#pragma once

#include "cuda/mma.cuh"

namespace zmlx::on_cuda {

__device__ inline float sum_over_warp(float v) {
  for (int apart = 16; apart > 0; apart /= 2) {
    v += __shfl_xor_sync(0xffffffff, v, apart);
  }
  return v;
}

// For K a multiple of 64 and of kGroup. Every lane has the sum.
template <typename T, int kBits, int kGroup>
__device__ float qmv_row(const T* x, const char* w, const T* scales, const T* biases, int K, int lane) {
  using Pair = typename Pairs<T>::Pair;
  constexpr int kValues = kBits == 4 ? 16 : 8;
  Pair sums[kValues / 2];
  float wide_sums[kValues];
#pragma unroll
  for (int i = 0; i < kValues; i++) {
    wide_sums[i] = 0;
    sums[i / 2] = Pairs<T>::round2(0, 0);
  }
  for (int k = lane * kValues; k < K; k += 32 * kValues) {
    Pair values[kValues / 2];
    uint2 codes = *reinterpret_cast<const uint2*>(w + k / 8 * kBits);
    Pair scale = twice<T>(reinterpret_cast<const char*>(scales + k / kGroup));
    Pair bias = twice<T>(reinterpret_cast<const char*>(biases + k / kGroup));
#pragma unroll
    for (int i = 0; i < kValues / 8; i++) {
      reinterpret_cast<uint4*>(values)[i] = reinterpret_cast<const uint4*>(x + k)[i];
    }
#pragma unroll
    for (int i = 0; i < kValues / 2; i++) {
      Pair weights;
      if constexpr (kBits == 4) {
        uint32_t byte = (i < 4 ? codes.x : codes.y) >> (i % 4 * 8);
        weights = as_pair<T>(dequantized<T>((byte & 0xf) | (byte & 0xf0) << 12, scale, bias));
        sums[i] = __hfma2(values[i], weights, sums[i]);
      } else {
        uint32_t word = (i < 2 ? codes.x : codes.y) >> (i % 2 * 16);
        weights = __hfma2(Pairs<T>::round2(word & 0xff, (word >> 8) & 0xff), scale, bias);
        wide_sums[2 * i] = __fmaf_rn(float(values[i].x), float(weights.x), wide_sums[2 * i]);
        wide_sums[2 * i + 1] = __fmaf_rn(float(values[i].y), float(weights.y), wide_sums[2 * i + 1]);
      }
    }
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kValues; i++) {
    sum = __fadd_rn(sum, kBits == 4 ? float(i % 2 ? sums[i / 2].y : sums[i / 2].x) : wide_sums[i]);
  }
  return sum_over_warp(sum);
}

} // namespace zmlx::on_cuda
