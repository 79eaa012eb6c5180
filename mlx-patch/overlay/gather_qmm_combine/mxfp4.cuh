// The kernel of gather_qmm_combine for mxfp4; cuda.cu launches it.
//
// A block has eight outputs of a token and all x of its experts; its warps take the products of one row with one x in turn,
// and one thread for each output adds them in the order of experts.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/mxfp4.cuh"
#include "gather_qmm_combine/kernel.cuh"

namespace zmlx::on_cuda {

template <typename T, typename Score>
struct Mxfp4Combine {
  const T* x; // [tokens, top_k, K]
  const uint32_t* experts; // [tokens, top_k]
  const Score* scores; // [tokens, top_k]
  Mxfp4 down; // [experts, N, K]
  const T* bias; // [experts, N], or null
  T* y; // [tokens, N]
  int K, N, top_k;
};

inline constexpr int kMxfp4CombineWarps = 8;
inline constexpr int kMxfp4Outputs = 8;
// Most products that stock computes in this order.
inline constexpr int kMxfp4Most = 7;

template <typename T, typename Score>
__global__ __launch_bounds__(kMxfp4CombineWarps * 32, 3) void gather_qmm_combine_mxfp4(
    const __grid_constant__ Mxfp4Combine<T, Score> p) {
  extern __shared__ __align__(16) char shared[];
  __shared__ T products[kMxfp4Most][kMxfp4Outputs];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t token = blockIdx.y;
  int row = blockIdx.x * kMxfp4Outputs;
  int units = kMxfp4Outputs * p.top_k;
  // x was computed from the choice of experts, so that this was complete when the launch began
  auto at = [&](int unit) { return int64_t{p.experts[token * p.top_k + unit / kMxfp4Outputs]} * p.N + row + unit % kMxfp4Outputs; };
  auto weights = [&](int unit) {
    return unit < units && row + unit % kMxfp4Outputs < p.N ? p.down.row(at(unit), p.K) : Mxfp4();
  };
  Mxfp4Rows<T, 1, 6> rows(p.K, lane);
  rows.ask({weights(warp)});

  wait_for_inputs();
  let_next_begin();
  for (int k = 0; k < p.top_k; k++) {
    auto* x = p.x + (token * p.top_k + k) * p.K;
    mxfp4_stage(shared + k * mxfp4_bytes_of_x(p.K), x, p.K, threadIdx.x, kMxfp4CombineWarps * 32);
  }
  __syncthreads();
  for (int unit = warp; unit < units; unit += kMxfp4CombineWarps) {
    bool is_row = row + unit % kMxfp4Outputs < p.N;
    T bias = p.bias && is_row ? p.bias[at(unit)] : T(0.0f);
    int k = unit / kMxfp4Outputs;
    float product[1];
    rows.multiply({weights(unit + kMxfp4CombineWarps)}, shared + k * mxfp4_bytes_of_x(p.K), product);
    if (lane == 0) {
      T value = Pairs<T>::round(product[0]);
      products[k][unit % kMxfp4Outputs] = p.bias ? __hadd_rn(value, bias) : value;
    }
  }
  __syncthreads();
  int output = threadIdx.x;
  if (output < kMxfp4Outputs && row + output < p.N) {
    WeightedSum<T, Score> sum;
    for (int k = 0; k < p.top_k; k++) {
      sum.add(products[k][output], p.scores[token * p.top_k + k], p.top_k == 1);
    }
    p.y[token * p.N + row + output] = sum.result();
  }
}

} // namespace zmlx::on_cuda
