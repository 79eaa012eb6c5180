// The kernels of gather_qmm_swiglu; cuda.cu launches them.
//
// A block has eight rows of gate and the same eight of up as the 16 rows of one product on tensor cores, so that both sums of
// an output end in one lane. Below eight rows stock adds in another order, in which a warp has one output.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/glu.cuh"
#include "cuda/qmv.cuh"

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

// Warps of a block, which have one product of 16 rows together.
inline constexpr int kSwigluTeam = 4;

template <typename T, int kBits, int kGroup>
constexpr size_t swiglu_shared_bytes(int K) {
  return K * sizeof(T) + SixteenRows<T, kBits, kGroup, kSwigluTeam>::bytes(K);
}

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kSwigluTeam * 32, 6) void gather_qmm_swiglu_mma(const __grid_constant__ Swiglu<T> p) {
  extern __shared__ __align__(16) char shared[];
  __shared__ Relay relay;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int blocks = p.N / 8;
  int64_t line = blockIdx.x / blocks; // of y
  int row = blockIdx.x % blocks * 8;
  // what chose the experts has read x
  stage_vector<T, kBits>(shared, p.vector(line), p.K, threadIdx.x, kSwigluTeam * 32);
  wait_for_inputs();
  let_next_begin();
  int64_t expert = p.rhs[line / p.M];
  SixteenRows<T, kBits, kGroup, kSwigluTeam> rows(shared + p.K * sizeof(T), p.K, warp, lane);
  rows.fetch(
      {rows_of<T, kBits, kGroup>(p.gate, expert, row, p.N, p.K),
       rows_of<T, kBits, kGroup>(p.up, expert, row, p.N, p.K)});
  float sums[4];
  bool is_last = rows.multiply(shared, sums, &relay, [] { __syncthreads(); });
  if (is_last && lane % 4 == 0) {
    p.y[line * p.N + row + lane / 4] = silu_gated(Pairs<T>::round(sums[0]), Pairs<T>::round(sums[2]));
  }
}

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(256) void gather_qmm_swiglu_qmv(const __grid_constant__ Swiglu<T> p) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int blocks = p.N / 8;
  int64_t line = blockIdx.x / blocks;
  int row = blockIdx.x % blocks * 8 + warp;
  wait_for_inputs();
  let_next_begin();
  int64_t expert = p.rhs[line / p.M];
  auto* x = p.vector(line);
  auto gate = rows_of<T, kBits, kGroup>(p.gate, expert, row, p.N, p.K);
  auto up = rows_of<T, kBits, kGroup>(p.up, expert, row, p.N, p.K);
  float gate_sum = qmv_row<T, kBits, kGroup>(x, gate.w, gate.scales, gate.biases, p.K, lane);
  float up_sum = qmv_row<T, kBits, kGroup>(x, up.w, up.scales, up.biases, p.K, lane);
  if (lane == 0) {
    p.y[line * p.N + row] = silu_gated(Pairs<T>::round(gate_sum), Pairs<T>::round(up_sum));
  }
}

} // namespace zmlx::on_cuda
