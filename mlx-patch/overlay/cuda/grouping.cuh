// Which lines of a product over experts have the same expert, found on the device.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/tile.h"

namespace zmlx::on_cuda {

struct Grouping {
  const uint32_t* lhs; // for each of `products` which x, or one for all of them; null where x is in their order
  const uint32_t* rhs; // and which expert
  Tile* tiles; // [num_tiles]
  Line* lines; // [products, M]
  int products, M, num_experts;
  bool one_x;
};

inline constexpr int kGroupingThreads = 512;

// f(product, its expert) for all of them, four at a time in a thread, every lane of a warp as often as the others.
template <typename F>
__device__ void each_product(const Grouping& p, F&& f) {
  constexpr int kAtOnce = 4;
  for (int from = 0; from < p.products; from += kAtOnce * kGroupingThreads) {
    uint32_t experts[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      int product = from + i * kGroupingThreads + threadIdx.x;
      // no index leads out of memory; what is not there has no expert
      experts[i] = product < p.products ? min(p.rhs[product], p.num_experts - 1) : p.num_experts;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      f(from + i * kGroupingThreads + threadIdx.x, experts[i]);
    }
  }
}

// A block for each expert, which finds by itself where its lines and tiles begin. Tiles begin where they would if every expert
// before had one more than its full ones, which leaves gaps. In which order the lines of an expert are listed differs from call
// to call; no sum depends on it.
__global__ __launch_bounds__(kGroupingThreads) void group_lines(const __grid_constant__ Grouping p) {
  __shared__ uint32_t before, mine, next;
  uint32_t expert = blockIdx.x;
  int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    before = mine = next = 0;
  }
  wait_for_inputs();
  let_next_begin();
  __syncthreads();
  uint32_t count_before = 0, count_mine = 0;
  each_product(p, [&](int, uint32_t of) {
    count_before += of < expert;
    count_mine += of == expert;
  });
  count_before = __reduce_add_sync(0xffffffff, count_before);
  count_mine = __reduce_add_sync(0xffffffff, count_mine);
  if (lane == 0) {
    atomicAdd(&before, count_before);
    atomicAdd(&mine, count_mine);
  }
  __syncthreads();
  uint32_t first = before * p.M, lines = mine * p.M;
  uint32_t tile = first / kTileLines + expert, next_tile = (first + lines) / kTileLines + expert + 1;
  uint32_t tiles = (lines + kTileLines - 1) / kTileLines;
  // about as many lines in each
  uint32_t in_tile = tiles ? ((lines + tiles - 1) / tiles + 7) / 8 * 8 : 0;
  for (uint32_t i = threadIdx.x; i < next_tile - tile; i += kGroupingThreads) {
    p.tiles[tile + i] = i < tiles ? Tile{expert, first + i * in_tile, min(in_tile, lines - i * in_tile)} : Tile{0, 0, 0};
  }
  each_product(p, [&](int product, uint32_t of) {
    uint32_t same = __ballot_sync(0xffffffff, of == expert);
    if (same == 0) {
      return;
    }
    int leader = __ffs(same) - 1;
    uint32_t at = lane == leader ? atomicAdd(&next, __popc(same)) : 0;
    at = __shfl_sync(0xffffffff, at, leader) + __popc(same & ((1u << lane) - 1));
    if (of == expert) {
      uint32_t from = p.lhs ? p.lhs[p.one_x ? 0 : product] : product;
      for (int i = 0; i < p.M; i++) {
        p.lines[first + at * p.M + i] = {from * p.M + i, static_cast<uint32_t>(product) * p.M + i};
      }
    }
  });
}

} // namespace zmlx::on_cuda
