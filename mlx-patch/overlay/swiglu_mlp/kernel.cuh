// The kernel of swiglu_mlp for fewer than eight rows of x; cuda.cu launches it. A warp has a row of gate and the same one of
// up, each in the order of quantized_matmul's.

#pragma once

#include "cuda/glu.cuh"
#include "quantized_matmul/kernel.cuh"

namespace zmlx::on_cuda {

// Blocks that a multiprocessor runs at once.
inline constexpr unsigned kSwigluBlocks = 3;

template <typename T>
struct SwigluRows {
  const T* x; // [lines, K]
  EightRows<T> gate, up; // [N, K]
  T* y; // [lines, N]
  int K, N;
};

// Rows of y = silu(x @ gate) * (x @ up) [N], every gridDim.x * kProductWarps-th from this warp's on; `x_is_there` is called
// when the first weights are on their way.
template <typename T, int kBits, int kGroup, typename Wait>
__device__ void swiglu_by_rows(
    const EightRows<T>& gate,
    const EightRows<T>& up,
    const T* x,
    T* y,
    int K,
    int N,
    char* shared,
    Wait x_is_there) {
  constexpr int kAhead = 4;
  constexpr int kValues = kTurn<kBits> / 32;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int stride = gridDim.x * kProductWarps;

  auto ask_one = [&](Piece<T>& piece, const EightRows<T>& weights, int64_t row, int k) {
    piece.codes = ask_for_codes<kBits>(weights.w, row, k, K);
    int64_t group = row * (K / kGroup) + k / kGroup;
    piece.scale = weights.scales[group];
    piece.bias = weights.biases[group];
  };
  Piece<T> of_gate[kAhead], of_up[kAhead];
  auto ask = [&](int a, int64_t row, int k) {
    if (k < K && row < N) {
      ask_one(of_gate[a], gate, row, k);
      ask_one(of_up[a], up, row, k);
    }
  };
  int64_t row = int64_t{blockIdx.x} * kProductWarps + warp;
#pragma unroll
  for (int a = 0; a < kAhead; a++) {
    ask(a, row, a * kTurn<kBits> + lane * kValues);
  }
  x_is_there();
  for (int i = threadIdx.x; i < K / 8; i += kProductWarps * 32) {
    LaneSums<T, kBits>::stage(shared, i, reinterpret_cast<const uint4*>(x)[i]);
  }
  __syncthreads();

  for (; row < N; row += stride) {
    LaneSums<T, kBits> gate_sums, up_sums;
    for (int first = 0; first < K; first += kAhead * kTurn<kBits>) {
      bool last = first + kAhead * kTurn<kBits> >= K;
#pragma unroll
      for (int a = 0; a < kAhead; a++) {
        int turn = first + a * kTurn<kBits>;
        if (turn + lane * kValues < K) {
          gate_sums.add(of_gate[a], shared + turn * 2 + lane * 16);
          up_sums.add(of_up[a], shared + turn * 2 + lane * 16);
        }
        int next = (last ? a * kTurn<kBits> : turn + kAhead * kTurn<kBits>) + lane * kValues;
        ask(a, last ? row + stride : row, next);
      }
    }
    float gate_sum = sum_over_warp(gate_sums.total()), up_sum = sum_over_warp(up_sums.total());
    if (lane == 0) {
      y[row] = silu_gated(Pairs<T>::round(gate_sum), Pairs<T>::round(up_sum));
    }
  }
}

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kProductWarps * 32, kSwigluBlocks) void swiglu_mlp_qmv(
    const __grid_constant__ SwigluRows<T> p) {
  extern __shared__ __align__(16) char shared[];
  auto* x = p.x + int64_t{blockIdx.y} * p.K;
  auto* y = p.y + int64_t{blockIdx.y} * p.N;
  swiglu_by_rows<T, kBits, kGroup>(p.gate, p.up, x, y, p.K, p.N, shared, [] {
    wait_for_inputs();
    let_next_begin();
  });
}

} // namespace zmlx::on_cuda
