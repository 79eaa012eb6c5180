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

} // namespace zmlx::on_cuda
