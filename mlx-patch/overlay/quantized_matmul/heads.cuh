// The kernel of quantized_matmul for a matrix and a vector for each head, from eight heads on; heads.cu launches it. A warp has
// 16 rows of a matrix, with the bits of stock's `qmm_sm80` (cuda/mma.cuh), and asks for them before the vectors are there.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/mma.cuh"

namespace zmlx::on_cuda {

template <typename T>
struct HeadProducts {
  const T* x; // [heads, K], heads `apart` values apart
  EightRows<T> weights; // [heads, N, K]
  T* y; // [heads, N]
  int K, N, apart;
};

inline constexpr int kMostHeadWarps = 4;

template <typename T, int kBits, int kGroup>
constexpr size_t heads_shared_bytes(int K, int warps) {
  return K * sizeof(T) + warps * SixteenRows<T, kBits, kGroup>::bytes(K);
}

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kMostHeadWarps * 32) void quantized_heads(const __grid_constant__ HeadProducts<T> p) {
  extern __shared__ __align__(16) char shared[];
  using Rows = SixteenRows<T, kBits, kGroup>;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  int head = blockIdx.y, row = (blockIdx.x * warps + warp) * 16;
  Rows rows(shared + p.K * sizeof(T) + warp * Rows::bytes(p.K), p.K, lane);
  rows.fetch(
      {rows_of<T, kBits, kGroup>(p.weights, head, row, p.N, p.K),
       rows_of<T, kBits, kGroup>(p.weights, head, row + 8, p.N, p.K)});
  wait_for_inputs();
  let_next_begin();
  stage_vector<T, kBits>(shared, p.x + int64_t{head} * p.apart, p.K, threadIdx.x, blockDim.x);
  float sums[4];
  rows.multiply(shared, sums, [] { __syncthreads(); });
  if (lane % 4 == 0) {
    T* y = p.y + int64_t{head} * p.N + row + lane / 4;
    y[0] = Pairs<T>::round(sums[0]);
    y[8] = Pairs<T>::round(sums[2]);
  }
}

} // namespace zmlx::on_cuda
