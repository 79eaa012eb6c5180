// A product of one vector by a matrix of many rows, as the logits are.
//
// Tiles of 16 rows come by bulk copies, which no thread has to carry, several at a time; a warp has two rows of each, so that
// what it reads of x counts twice. The bits are those of kernel.cuh.

#pragma once

#include "cuda/copies.cuh"
#include "quantized_matmul/kernel.cuh"

namespace zmlx::on_cuda {

inline constexpr int kTileRows = 2 * kProductWarps;

// Shared memory of a block: two of them on a multiprocessor.
inline constexpr size_t kStreamedShared = 100 * 1024;

template <typename T, int kBits, int kGroup>
constexpr size_t tile_bytes(int K) {
  return size_t{kTileRows} * (K / 8 * kBits + K / kGroup * 2 * sizeof(T));
}

// Tiles that are on their way or being multiplied.
template <typename T, int kBits, int kGroup>
constexpr int tiles_at_once(int K) {
  size_t of_x = bytes_of_x<kBits>(K);
  return of_x < kStreamedShared ? static_cast<int>((kStreamedShared - of_x) / tile_bytes<T, kBits, kGroup>(K)) : 0;
}

inline constexpr int kMostTilesAtOnce = 8;

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kProductWarps * 32, 2) void streamed_product(const __grid_constant__ Product<T> p) {
#if __CUDA_ARCH__ >= 900 // others have no bulk copies, and are refused
  extern __shared__ __align__(16) char shared[];
  __shared__ uint64_t barriers[kMostTilesAtOnce];
  constexpr int kValues = kTurn<kBits> / 32;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row_bytes = p.K / 8 * kBits, groups = p.K / kGroup;
  int at_once = min(tiles_at_once<T, kBits, kGroup>(p.K), kMostTilesAtOnce);
  auto* tiles = shared + bytes_of_x<kBits>(p.K);
  int num_tiles = p.N / kTileRows;

  // the n-th tile of this block
  auto ask = [&](int n) {
    int64_t tile = blockIdx.x + int64_t{n} * gridDim.x;
    if (tile < num_tiles) {
      CopyBarrier barrier(barriers + n % at_once);
      auto* to = tiles + n % at_once * tile_bytes<T, kBits, kGroup>(p.K);
      uint32_t of_w = kTileRows * row_bytes, of_scales = kTileRows * groups * sizeof(T);
      barrier.expect(of_w + 2 * of_scales);
      barrier.copy(to, p.weights.w + tile * of_w, of_w);
      barrier.copy(to + of_w, p.weights.scales + tile * kTileRows * groups, of_scales);
      barrier.copy(to + of_w + of_scales, p.weights.biases + tile * kTileRows * groups, of_scales);
    }
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < at_once; i++) {
      CopyBarrier(barriers + i).init();
    }
    CopyBarrier::all_are_initialized();
    for (int i = 0; i < at_once; i++) {
      ask(i);
    }
  }
  wait_for_inputs();
  let_next_begin();
  auto* x = reinterpret_cast<const uint4*>(p.x);
  for (int i = threadIdx.x; i < p.K / 8; i += blockDim.x) {
    LaneSums<T, kBits>::stage(shared, i, x[i]);
  }
  __syncthreads();

  for (int n = 0; blockIdx.x + int64_t{n} * gridDim.x < num_tiles; n++) {
    CopyBarrier(barriers + n % at_once).wait(n / at_once);
    auto* w = tiles + n % at_once * tile_bytes<T, kBits, kGroup>(p.K);
    auto* scales = reinterpret_cast<const T*>(w + kTileRows * row_bytes);
    auto* biases = scales + kTileRows * groups;
    LaneSums<T, kBits> sums[2];
#pragma unroll 4
    for (int k = lane * kValues; k < p.K; k += kTurn<kBits>) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int row = warp + i * kProductWarps;
        Piece<T> piece = {
            *reinterpret_cast<const uint2*>(w + row * row_bytes + k / 8 * kBits),
            scales[row * groups + k / kGroup],
            biases[row * groups + k / kGroup]};
        sums[i].add(piece, shared + k / kTurn<kBits> * kTurn<kBits> * 2 + lane * 16);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = sum_over_warp(sums[i].total());
      if (lane == 0) {
        int64_t tile = blockIdx.x + int64_t{n} * gridDim.x;
        p.y[tile * kTileRows + warp + i * kProductWarps] = Pairs<T>::round(sum);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      ask(n + at_once);
    }
  }
#endif
}

} // namespace zmlx::on_cuda
