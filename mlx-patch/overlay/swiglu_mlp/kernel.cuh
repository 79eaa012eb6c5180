// The kernel of swiglu_mlp for fewer than eight rows of x; cuda.cu launches it. A warp has a row of gate and the same one of
// up, each in the order of quantized_matmul's.

#pragma once

#include "cuda/glu.cuh"
#include "quantized_matmul/kernel.cuh"

namespace zmlx::on_cuda {

template <typename T>
struct SwigluRows {
  const T* x; // [lines, K]
  EightRows<T> gate, up; // [N, K]
  T* y; // [lines, N]
  int K, N;
};

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kProductWarps * 32, 3) void swiglu_mlp_qmv(const __grid_constant__ SwigluRows<T> p) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kAhead = 4;
  constexpr int kValues = kTurn<kBits> / 32;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int stride = gridDim.x * kProductWarps;

  auto ask_one = [&](Piece<T>& piece, const EightRows<T>& weights, int64_t row, int k) {
    piece.codes = __ldcs(reinterpret_cast<const uint2*>(weights.w + (row * p.K + k) / 8 * kBits));
    int64_t group = row * (p.K / kGroup) + k / kGroup;
    piece.scale = weights.scales[group];
    piece.bias = weights.biases[group];
  };
  Piece<T> gate[kAhead], up[kAhead];
  auto ask = [&](int a, int64_t row, int k) {
    if (k < p.K && row < p.N) {
      ask_one(gate[a], p.gate, row, k);
      ask_one(up[a], p.up, row, k);
    }
  };
  int64_t row = int64_t{blockIdx.x} * kProductWarps + warp;
#pragma unroll
  for (int a = 0; a < kAhead; a++) {
    ask(a, row, a * kTurn<kBits> + lane * kValues);
  }

  wait_for_inputs();
  let_next_begin();
  auto* x = reinterpret_cast<const uint4*>(p.x + int64_t{blockIdx.y} * p.K);
  for (int i = threadIdx.x; i < p.K / 8; i += kProductWarps * 32) {
    LaneSums<T, kBits>::stage(shared, i, x[i]);
  }
  __syncthreads();

  for (; row < p.N; row += stride) {
    LaneSums<T, kBits> gate_sums, up_sums;
    for (int first = 0; first < p.K; first += kAhead * kTurn<kBits>) {
      bool last = first + kAhead * kTurn<kBits> >= p.K;
#pragma unroll
      for (int a = 0; a < kAhead; a++) {
        int turn = first + a * kTurn<kBits>;
        if (turn + lane * kValues < p.K) {
          gate_sums.add(gate[a], shared + turn * 2 + lane * 16);
          up_sums.add(up[a], shared + turn * 2 + lane * 16);
        }
        int next = (last ? a * kTurn<kBits> : turn + kAhead * kTurn<kBits>) + lane * kValues;
        ask(a, last ? row + stride : row, next);
      }
    }
    float gate_sum = sum_over_warp(gate_sums.total()), up_sum = sum_over_warp(up_sums.total());
    if (lane == 0) {
      p.y[int64_t{blockIdx.y} * p.N + row] = silu_gated(Pairs<T>::round(gate_sum), Pairs<T>::round(up_sum));
    }
  }
}

} // namespace zmlx::on_cuda
