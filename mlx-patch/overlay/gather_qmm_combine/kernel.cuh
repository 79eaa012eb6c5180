// The kernels of gather_qmm_combine; cuda.cu launches them.
//
// A block has 16 outputs of a token, and each of its warps the product of one expert after the other; what they round lies
// in shared memory until one thread for each output adds in the order of experts, as stock's reduction over short columns
// (mlx/backend/cuda/reduce/col_reduce.cu, `col_reduce_small`). Below eight products stock multiplies in another order, in
// which a warp has one output of all experts.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/qmv.cuh"
#include "quantized_matmul/kernel.cuh"

namespace zmlx::on_cuda {

template <typename T, typename Score>
struct Combine {
  const T* x; // [tokens, top_k, K]
  const uint32_t* experts; // [tokens, top_k]
  const Score* scores; // [tokens, top_k]
  EightRows<T> down; // of expert 0
  T* y; // [tokens, N]
  int K, N, top_k, warps;
};

// The sum of stock's graph: multiply, sum, astype. One product alone is no sum there, and keeps the sign of a zero.
template <typename T, typename Score>
class WeightedSum {
 public:
  __device__ void add(T value, Score score, bool alone) {
    if constexpr (std::is_same_v<Score, float>) {
      float product = __fmul_rn(static_cast<float>(value), score);
      sum_ = alone ? product : __fadd_rn(sum_, product);
    } else {
      T product = __hmul_rn(value, score);
      sum_ = alone ? product : __hadd_rn(sum_, product);
    }
  }

  __device__ T result() const {
    if constexpr (std::is_same_v<Score, float>) {
      return Pairs<T>::round(sum_);
    } else {
      return sum_;
    }
  }

 private:
  Score sum_ = Score(0.0f);
};

// Most experts of a token.
inline constexpr int kMostExperts = 32;

// Most warps of a block.
inline constexpr int kMostCombineWarps = 16;

// Shared memory of a warp.
template <typename T, int kBits, int kGroup>
constexpr size_t combine_shared_bytes(int K) {
  return K * sizeof(T) + SixteenRows<T, kBits, kGroup>::bytes(K);
}

template <typename T, typename Score, int kBits, int kGroup>
__global__ __launch_bounds__(kMostCombineWarps * 32) void gather_qmm_combine_mma(
    const __grid_constant__ Combine<T, Score> p) {
  extern __shared__ __align__(16) char shared[];
  __shared__ T products[kMostExperts][16];
  using Rows = SixteenRows<T, kBits, kGroup>;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int blocks = p.N / 16;
  int64_t token = blockIdx.x / blocks;
  int row = blockIdx.x % blocks * 16;
  auto* mine = shared + warp * combine_shared_bytes<T, kBits, kGroup>(p.K);
  for (int k = warp; k < p.top_k; k += p.warps) {
    int64_t product = token * p.top_k + k;
    int64_t expert = p.experts[product];
    Rows rows(mine + p.K * sizeof(T), p.K, lane);
    rows.fetch(
        {rows_of<T, kBits, kGroup>(p.down, expert, row, p.N, p.K),
         rows_of<T, kBits, kGroup>(p.down, expert, row + 8, p.N, p.K)});
    if (k == warp) {
      // x was computed from the choice of experts, so that this was complete when the launch began
      wait_for_inputs();
      let_next_begin();
    }
    stage_vector<T, kBits>(mine, p.x + product * p.K, p.K, lane, 32);
    float sums[4];
    rows.multiply(mine, sums, [] { __syncwarp(); });
    if (lane % 4 == 0) {
      products[k][lane / 4] = Pairs<T>::round(sums[0]);
      products[k][lane / 4 + 8] = Pairs<T>::round(sums[2]);
    }
    __syncwarp();
  }
  __syncthreads();
  if (threadIdx.x < 16) {
    WeightedSum<T, Score> sum;
    for (int k = 0; k < p.top_k; k++) {
      sum.add(products[k][threadIdx.x], p.scores[token * p.top_k + k], p.top_k == 1);
    }
    p.y[token * p.N + row + threadIdx.x] = sum.result();
  }
}

// Weights of an expert are asked for while the one before is multiplied.
template <typename T, typename Score, int kBits, int kGroup>
__global__ __launch_bounds__(kProductWarps * 32, 3) void gather_qmm_combine_qmv(
    const __grid_constant__ Combine<T, Score> p) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kAhead = 6;
  constexpr int kValues = kTurn<kBits> / 32;
  constexpr size_t kBytesOfTurn = bytes_of_x<kBits>(1);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int blocks = p.N / kProductWarps;
  int64_t token = blockIdx.x / blocks;
  int row = blockIdx.x % blocks * kProductWarps + warp;
  int turns = (p.K + kTurn<kBits> - 1) / kTurn<kBits>, all = turns * p.top_k;
  auto* experts = p.experts + token * p.top_k;

  Piece<T> pieces[kAhead];
  auto ask = [&](Piece<T>& piece, int i) {
    int k = i % turns * kTurn<kBits> + lane * kValues;
    if (i < all && k < p.K) {
      int64_t at = int64_t{experts[i / turns]} * p.N + row;
      piece.codes = ask_for_codes<kBits>(p.down.w, at, k, p.K);
      int64_t group = at * (p.K / kGroup) + k / kGroup;
      piece.scale = p.down.scales[group];
      piece.bias = p.down.biases[group];
    }
  };
  // x was computed from the choice of experts, so that this was complete when the launch began
#pragma unroll
  for (int a = 0; a < kAhead; a++) {
    ask(pieces[a], a);
  }
  wait_for_inputs();
  let_next_begin();
  for (int i = threadIdx.x; i < p.top_k * p.K / 8; i += kProductWarps * 32) {
    int expert = i / (p.K / 8), part = i % (p.K / 8);
    auto* x = reinterpret_cast<const uint4*>(p.x + (token * p.top_k + expert) * p.K);
    LaneSums<T, kBits>::stage(shared + expert * turns * kBytesOfTurn, part, x[part]);
  }
  __syncthreads();

  WeightedSum<T, Score> sum;
  LaneSums<T, kBits> sums;
  for (int first = 0; first < all; first += kAhead) {
#pragma unroll
    for (int a = 0; a < kAhead; a++) {
      int i = first + a;
      if (i >= all) {
        break;
      }
      if (i % turns * kTurn<kBits> + lane * kValues < p.K) {
        sums.add(pieces[a], shared + i * kBytesOfTurn + lane * 16);
      }
      ask(pieces[a], i + kAhead);
      if (i % turns == turns - 1) {
        float value = sum_over_warp(sums.total());
        sum.add(Pairs<T>::round(value), p.scores[token * p.top_k + i / turns], p.top_k == 1);
        sums = {};
      }
    }
  }
  if (lane == 0) {
    p.y[token * p.N + row] = sum.result();
  }
}

} // namespace zmlx::on_cuda
