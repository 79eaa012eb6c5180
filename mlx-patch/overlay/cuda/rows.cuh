// Sums of squares of rows in the order of stock's `rms_norm_small` (mlx/backend/cuda/rms_norm.cu).

#pragma once

#include "cuda/qmv.cuh"

namespace zmlx::on_cuda {

// Values that stock reads at once, 16 bytes.
template <typename T>
inline constexpr int kReads = 16 / sizeof(T);

template <typename T>
__device__ T to(float v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else {
    return Pairs<T>::round(v);
  }
}

template <typename T>
__device__ T times(T a, T b) {
  if constexpr (std::is_same_v<T, float>) {
    return __fmul_rn(a, b);
  } else {
    return __hmul_rn(a, b);
  }
}

template <typename T>
__device__ T plus(T a, T b) {
  if constexpr (std::is_same_v<T, float>) {
    return __fadd_rn(a, b);
  } else {
    return __hadd_rn(a, b);
  }
}

// What a row is multiplied by.
__device__ inline float normalizer(float sum_of_squares, uint32_t size, float eps) {
  return rsqrt(__fadd_rn(__fdiv_rn(sum_of_squares, static_cast<float>(size)), eps));
}

template <typename T>
__device__ T normalized(T x, float normalizer, T weight) {
  return times(weight, to<T>(__fmul_rn(static_cast<float>(x), normalizer)));
}

} // namespace zmlx::on_cuda
