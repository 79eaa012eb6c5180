// The kernel of quantized_matmul for mxfp4; cuda.cu launches it.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/mxfp4.cuh"

namespace zmlx::on_cuda {

template <typename T>
struct Mxfp4Product {
  const T* x; // [lines, K]
  Mxfp4 weights; // [N, K]
  const T* bias; // [N], or null
  T* y; // [lines, N]
  int K, N;
};

inline constexpr int kMxfp4Warps = 8;

// A warp has every row of weights in turn with the others of its line.
template <typename T>
__global__ __launch_bounds__(kMxfp4Warps * 32, 4) void quantized_matmul_mxfp4(const __grid_constant__ Mxfp4Product<T> p) {
  extern __shared__ __align__(16) char shared[];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int stride = gridDim.x * kMxfp4Warps;
  auto weights = [&](int row) { return row < p.N ? p.weights.row(row, p.K) : Mxfp4(); };
  Mxfp4Rows<T, 1, 6> rows(p.K, lane);
  int row = blockIdx.x * kMxfp4Warps + warp;
  rows.ask({weights(row)});

  wait_for_inputs();
  let_next_begin();
  mxfp4_stage(shared, p.x + int64_t{blockIdx.y} * p.K, p.K, threadIdx.x, kMxfp4Warps * 32);
  __syncthreads();

  for (; row < p.N; row += stride) {
    T bias = p.bias ? p.bias[row] : T(0.0f);
    float product[1];
    rows.multiply({weights(row + stride)}, shared, product);
    if (lane == 0) {
      T y = Pairs<T>::round(product[0]);
      p.y[int64_t{blockIdx.y} * p.N + row] = p.bias ? __hadd_rn(y, bias) : y;
    }
  }
}

} // namespace zmlx::on_cuda
