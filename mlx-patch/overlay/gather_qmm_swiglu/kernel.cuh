// The kernels of gather_qmm_swiglu; cuda.cu launches them.
//
// A warp has eight rows of gate and the same eight of up as the 16 rows of one product on tensor cores, so that both sums of
// an output end in one lane. Below eight rows stock adds in another order, in which a warp has one output at a time.

#pragma once

#include <algorithm>

#include "cuda/depend.cuh"
#include "cuda/glu.cuh"
#include "cuda/qmv.cuh"
#include "swiglu_mlp/kernel.cuh"

namespace zmlx::on_cuda {

template <typename T>
struct Swiglu {
  const T* x; // [.., M, K]
  const uint32_t* lhs; // for each of `products` which x, or one for all of them
  const uint32_t* rhs; // and which expert
  EightRows<T> gate, up; // of expert 0
  T* y; // [products, M, N]
  int K, N, M;
  bool one_x;

  // The vector of a line of y.
  __device__ const T* vector(int64_t line) const {
    return x + (int64_t{lhs[one_x ? 0 : line / M]} * M + line % M) * K;
  }
};

// Most warps of a block.
inline constexpr int kMostSwigluWarps = 8;

// Shared memory of a block.
template <typename T, int kBits, int kGroup>
constexpr size_t swiglu_shared_bytes(int K, int warps) {
  return K * sizeof(T) + warps * SixteenRows<T, kBits, kGroup>::bytes(K);
}

// Of `rows` products of 16 rows each, `in_line` of which have one x: as many in a block as make every multiprocessor have
// about one block, for all of them to be done at the same time.
inline int swiglu_warps(int64_t rows, int in_line, size_t bytes_of_warp, size_t bytes_of_x, int multiprocessors) {
  int64_t wanted = std::min<int64_t>((rows + multiprocessors - 1) / multiprocessors, kMostSwigluWarps);
  int warps = 1;
  for (int n = 2; n <= wanted; n++) {
    if (in_line % n == 0 && n * bytes_of_warp + bytes_of_x <= kMostShared) {
      warps = n;
    }
  }
  return warps;
}

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kMostSwigluWarps * 32) void gather_qmm_swiglu_mma(const __grid_constant__ Swiglu<T> p) {
  extern __shared__ __align__(16) char shared[];
  using Rows = SixteenRows<T, kBits, kGroup>;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  int blocks = p.N / (8 * warps);
  int64_t line = blockIdx.x / blocks; // of y
  int row = (blockIdx.x % blocks * warps + warp) * 8;
  wait_for_inputs();
  let_next_begin();
  int64_t expert = p.rhs[line / p.M];
  Rows rows(shared + p.K * sizeof(T) + warp * Rows::bytes(p.K), p.K, lane);
  rows.fetch(
      {rows_of<T, kBits, kGroup>(p.gate, expert, row, p.N, p.K),
       rows_of<T, kBits, kGroup>(p.up, expert, row, p.N, p.K)});
  stage_vector<T, kBits>(shared, p.vector(line), p.K, threadIdx.x, blockDim.x);
  float sums[4];
  rows.multiply(shared, sums, [] { __syncthreads(); });
  if (lane % 4 == 0) {
    p.y[line * p.N + row + lane / 4] = silu_gated(Pairs<T>::round(sums[0]), Pairs<T>::round(sums[2]));
  }
}

// As swiglu_mlp's: a block has rows of one line.
template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kProductWarps * 32, kSwigluBlocks) void gather_qmm_swiglu_qmv(
    const __grid_constant__ Swiglu<T> p) {
  extern __shared__ __align__(16) char shared[];
  int64_t line = blockIdx.y;
  wait_for_inputs();
  let_next_begin();
  int64_t expert = p.rhs[line / p.M];
  auto gate = rows_of<T, kBits, kGroup>(p.gate, expert, 0, p.N, p.K);
  auto up = rows_of<T, kBits, kGroup>(p.up, expert, 0, p.N, p.K);
  swiglu_by_rows<T, kBits, kGroup>(gate, up, p.vector(line), p.y + line * p.N, p.K, p.N, shared, [] {});
}

} // namespace zmlx::on_cuda
