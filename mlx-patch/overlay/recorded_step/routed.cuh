// A residual stream's norm, the router's product and the choice of experts in one launch.
//
// Few blocks have the rows of the router, two a warp; they are a cluster, so that the logits meet in the shared memory of the
// first one, which routes.

#pragma once

#include <cooperative_groups.h>

#include <type_traits>

#include "cuda/depend.cuh"
#include "moe_router/kernel.cuh"
#include "quantized_matmul/held.cuh"

namespace zmlx::on_cuda {

// Blocks of the cluster.
inline constexpr int kRoutingBlocks = 8;

template <typename T>
struct Routing {
  Normed<T> in;
  EightRows<T> weights; // [experts, K]
  Router<T> router; // its logits are the block's own
  int K;
};

// What a warp holds of two rows of 8 bits; their weights are dequantized when they are used.
template <typename T, int kGroup>
class HeldBytes {
 public:
  __device__ void ask(const EightRows<T>& rows, int K, int lane, int) {
#pragma unroll
    for (int row = 0; row < 2; row++) {
#pragma unroll
      for (int turn = 0; turn < kTurns; turn++) {
        int k = turn * kTurn<8> + lane * 8;
        if (k < K) {
          auto& piece = pieces_[row][turn];
          piece.codes = __ldcs(reinterpret_cast<const uint2*>(rows.w + row * K + k));
          piece.scale = rows.scales[(row * K + k) / kGroup];
          piece.bias = rows.biases[(row * K + k) / kGroup];
        }
      }
    }
  }

  __device__ void dequantize() {}

  // By the staged x: of this lane.
  __device__ void multiply(const char* x, int K, int lane, float (&totals)[2]) const {
#pragma unroll
    for (int row = 0; row < 2; row++) {
      LaneSums<T, 8> sums;
#pragma unroll
      for (int turn = 0; turn < kTurns; turn++) {
        if (turn * kTurn<8> + lane * 8 < K) {
          sums.add(pieces_[row][turn], x + turn * kTurn<8> * 2 + lane * 16);
        }
      }
      totals[row] = sums.total();
    }
  }

 private:
  static constexpr int kTurns = kMostHeld / kTurn<8>;

  Piece<T> pieces_[2][kTurns];
};

// As multiply_held.
template <typename T, int kGroup>
__device__ void multiply_held(
    const HeldBytes<T, kGroup>& held, const char* x, int K, int lane, int, float (&totals)[2]) {
  held.multiply(x, K, lane, totals);
  totals[0] = sum_over_warp(totals[0]);
  totals[1] = sum_over_warp(totals[1]);
}

// Threads of a block: a warp for two experts of its part.
constexpr int routing_threads(int experts) {
  return experts / kRoutingBlocks / 2 * 32;
}

// Architectures without clusters are refused, but may be compiled for.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define ZMLX_ROUTING_CLUSTER __cluster_dims__(kRoutingBlocks, 1, 1)
#else
#define ZMLX_ROUTING_CLUSTER
#endif

template <typename T, int kBits, int kGroup>
__global__ ZMLX_ROUTING_CLUSTER __launch_bounds__(routing_threads(kMostRouted), kBits == 4 ? 2 : 1) void normed_routing(
    const __grid_constant__ Routing<T> p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) char shared[];
  __shared__ __align__(16) T logits[kMostRouted];
  auto cluster = cooperative_groups::this_cluster();
  auto began = cluster.barrier_arrive();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row = (blockIdx.x * blockDim.x / 32 + warp) * 2;
  std::conditional_t<kBits == 4, HeldRows<T, kGroup, 1>, HeldBytes<T, kGroup>> held;
  held.ask({p.weights.w + int64_t{row} * (p.K / 8 * kBits), p.weights.scales + int64_t{row} * (p.K / kGroup),
            p.weights.biases + int64_t{row} * (p.K / kGroup)},
           p.K, lane, 0);
  ask_for_norm<T, kBits>(p.in, p.K, shared);
  wait_for_inputs();
  let_next_begin();
  stage_normed<T, kBits>(p.in, p.K, shared, blockIdx.x == kRoutingBlocks - 1, [&] { held.dequantize(); });
  float totals[2];
  multiply_held(held, shared, p.K, lane, 0, totals);
  cluster.barrier_wait(std::move(began));
  if (lane == 0) {
    using Pair = typename Pairs<T>::Pair;
    *reinterpret_cast<Pair*>(cluster.map_shared_rank(logits + row, 0)) = Pairs<T>::round2(totals[0], totals[1]);
  }
  cluster.sync();
  if (blockIdx.x == 0) {
    auto router = p.router;
    router.logits = logits;
    route(router, 0);
  }
#endif
}

#undef ZMLX_ROUTING_CLUSTER

} // namespace zmlx::on_cuda
