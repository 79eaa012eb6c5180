// The kernel of gather_qmm_swiglu for mxfp4; cuda.cu launches it.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/glu.cuh"
#include "cuda/mxfp4.cuh"

namespace zmlx::on_cuda {

template <typename T>
struct Mxfp4Swiglu {
  const T* x; // [.., M, K]
  const uint32_t* lhs; // for each of `products` which x, or one for all of them
  const uint32_t* rhs; // and which expert
  Mxfp4 gate, up; // [experts, N, K]
  const T* gate_bias; // [experts, N], or null
  const T* up_bias;
  T* y; // [products, M, N]
  int K, N, M;
  bool one_x;
  Joined<T> joined;
};

inline constexpr int kMxfp4SwigluWarps = 8;

// A warp has every output of a line in turn with the others, and of both matrices the row that it is of.
template <typename T>
__global__ __launch_bounds__(kMxfp4SwigluWarps * 32, 3) void gather_qmm_swiglu_mxfp4(
    const __grid_constant__ Mxfp4Swiglu<T> p) {
  extern __shared__ __align__(16) char shared[];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int line = blockIdx.y, stride = gridDim.x * kMxfp4SwigluWarps;
  wait_for_inputs();
  let_next_begin();
  int64_t first = int64_t{p.rhs[line / p.M]} * p.N; // row of the expert
  Mxfp4Rows<T, 2, 3> rows(p.K, lane);
  int row = blockIdx.x * kMxfp4SwigluWarps + warp;
  auto both = [&](int row, Mxfp4 (&weights)[2]) {
    weights[0] = row < p.N ? p.gate.row(first + row, p.K) : Mxfp4();
    weights[1] = row < p.N ? p.up.row(first + row, p.K) : Mxfp4();
  };
  Mxfp4 next[2];
  both(row, next);
  rows.ask(next);
  auto* x = p.x + (int64_t{p.lhs[p.one_x ? 0 : line / p.M]} * p.M + line % p.M) * p.K;
  mxfp4_stage(shared, x, p.K, threadIdx.x, kMxfp4SwigluWarps * 32);
  __syncthreads();

  for (; row < p.N; row += stride) {
    T gate_bias = p.gate_bias ? p.gate_bias[first + row] : T(0.0f);
    T up_bias = p.up_bias ? p.up_bias[first + row] : T(0.0f);
    both(row + stride, next);
    float products[2];
    rows.multiply(next, shared, products);
    if (lane == 0) {
      T gate = Pairs<T>::round(products[0]), up = Pairs<T>::round(products[1]);
      if (p.gate_bias) {
        gate = __hadd_rn(gate, gate_bias);
        up = __hadd_rn(up, up_bias);
      }
      p.y[int64_t{line} * p.N + row] = p.joined(gate, up);
    }
  }
}

} // namespace zmlx::on_cuda
