// What joins gate and up projections on CUDA, with the roundings of stock, where every operation is a launch or a step of
// one (mlx/backend/cuda/device/unary_ops.cuh).

#pragma once

#include <cuda/std/cmath>

#include "cuda/mma.cuh"

namespace zmlx::on_cuda {

template <typename T>
__device__ T sigmoid(T x) {
  T e = cuda::std::exp(cuda::std::abs(x));
  T sum = Pairs<T>::round(1.0f + static_cast<float>(e));
  T y = Pairs<T>::round(1.0f / static_cast<float>(sum));
  return static_cast<float>(x) < 0 ? y : Pairs<T>::round(1.0f - static_cast<float>(y));
}

template <typename T>
__device__ T silu_gated(T gate, T up) {
  return __hmul_rn(__hmul_rn(gate, sigmoid(gate)), up);
}

// With stock's choice where one is not a number.
template <typename T>
__device__ T lesser(T a, T b) {
  return __hisnan(a) || __hlt(a, b) ? a : b;
}

template <typename T>
__device__ T greater(T a, T b) {
  return __hisnan(a) || __hgt(a, b) ? a : b;
}

// silu(gate) * up or, where it is clipped, (clip(up) + 1) * g * sigmoid(alpha * g) with g = min(gate, limit).
template <typename T>
struct Joined {
  bool clipped;
  T alpha, limit;

  __device__ T operator()(T gate, T up) const {
    if (!clipped) {
      return silu_gated(gate, up);
    }
    T g = lesser(gate, limit);
    T u = lesser(greater(up, __hneg(limit)), limit);
    return __hmul_rn(__hadd_rn(u, Pairs<T>::round(1.0f)), __hmul_rn(g, sigmoid(__hmul_rn(alpha, g))));
  }
};

} // namespace zmlx::on_cuda
