// A residual stream's norm, the router's product and the choice of experts in one launch.
//
// Few blocks have the rows of the router, two a warp; they are a cluster, so that the logits meet in the shared memory of the
// first one, which routes.

#pragma once

#include <cooperative_groups.h>

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

// Threads of a block: a warp for two experts of its part.
constexpr int routing_threads(int experts) {
  return experts / kRoutingBlocks / 2 * 32;
}

template <typename T, int kGroup>
__global__ __cluster_dims__(kRoutingBlocks, 1, 1) __launch_bounds__(routing_threads(kMostRouted), 2)
    void normed_routing(const __grid_constant__ Routing<T> p) {
  extern __shared__ __align__(16) char shared[];
  __shared__ __align__(16) T logits[kMostRouted];
  auto cluster = cooperative_groups::this_cluster();
  auto began = cluster.barrier_arrive();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row = (blockIdx.x * blockDim.x / 32 + warp) * 2;
  HeldRows<T, kGroup, 1> held;
  held.ask({p.weights.w + int64_t{row} * (p.K / 2), p.weights.scales + int64_t{row} * (p.K / kGroup),
            p.weights.biases + int64_t{row} * (p.K / kGroup)},
           p.K, lane, 0);
  ask_for_norm(p.in, p.K, shared);
  wait_for_inputs();
  let_next_begin();
  stage_normed(p.in, p.K, shared, blockIdx.x == kRoutingBlocks - 1, [&] { held.dequantize(); });
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
}

} // namespace zmlx::on_cuda
