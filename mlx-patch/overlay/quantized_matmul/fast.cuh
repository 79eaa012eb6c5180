// A matrix by vectors, each for itself, in `fast` precision (cuda/fast_rows.cuh), a launch that asks for its weights
// before its vector is there.
//
// A warp has tiles of 16 rows, of which several warps may have a part along K each.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/fast_rows.cuh"
#include "quantized_matmul/kernel.cuh"

namespace zmlx::on_cuda::fast {

inline constexpr int kTileRows = 16;

// Most warps of a block.
inline constexpr int kMostWarps = 16;

// How many warps a tile has, and how many blocks there are.
struct Shape {
  int parts, warps;
  unsigned blocks;
};

// For so many tiles of rows of `pieces`: all of what a warp has is on its way at once, or where there are more tiles than run at
// once, they come in turn.
inline Shape shape_of(int tiles, int pieces, int multiprocessors) {
  if (tiles >= 32 * multiprocessors) {
    return {1, 8, 2u * multiprocessors};
  }
  int parts = 1;
  while (parts < 8 && pieces > 2 * parts) {
    parts *= 2;
  }
  int of_block = kMostWarps / parts;
  return {parts, kMostWarps, static_cast<unsigned>((tiles + of_block - 1) / of_block)};
}

// `kAhead`: pieces of a warp that are on their way, or wait until x is there.
// `parts`: warps of a tile; where they are several, every block has all of its tiles at once.
template <typename T, int kBits, int kGroup, int kAhead = 2>
__global__ __launch_bounds__(kMostWarps * 32, 1) void fast_product(const __grid_constant__ Product<T> p, int parts) {
  extern __shared__ __align__(16) char shared[];
  using R = Rows<T, kBits, kGroup>;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int of_block = blockDim.x / 32 / parts, mine = warp / parts;
  int tiles = (p.N + kTileRows - 1) / kTileRows, stride = gridDim.x * of_block;
  int pieces = p.K / Layout<kBits, kGroup>::kPiece, each = (pieces + parts - 1) / parts, part = warp - mine * parts;
  int from = part * each, to = min(from + each, pieces);
  int tile = from < to ? blockIdx.x * of_block + mine : tiles;

  Source<T> source;
  auto begin = [&](int tile) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int64_t row = min(tile * kTileRows + lane / 4 + 8 * i, p.N - 1);
      source.w[i] = p.weights.w + row * (p.K / 8 * kBits);
      source.scales[i] = p.weights.scales + row * (p.K / kGroup);
      source.biases[i] = p.weights.biases + row * (p.K / kGroup);
    }
  };
  int asked_tile = tile, asked = from;
  typename R::Codes codes[kAhead];
  typename R::Scales scales[kAhead];
  auto ask = [&](int slot) {
    if (asked_tile < tiles) {
      if (asked == from) {
        begin(asked_tile);
      }
      R::ask(codes[slot], scales[slot], source, asked, lane);
      if (++asked == to) {
        asked = from;
        asked_tile += parts > 1 ? tiles : stride;
      }
    }
  };
#pragma unroll
  for (int slot = 0; slot < kAhead; slot++) {
    ask(slot);
  }
  wait_for_inputs();
  let_next_begin();
  stage<T, kBits, kGroup>(shared, p.x + int64_t{blockIdx.y} * p.K, p.K, threadIdx.x, blockDim.x, [] {});
  __syncthreads();

  Rows<T, kBits, kGroup> rows(shared, p.K, lane);
  auto write = [&](int row, float total) {
    if (row < p.N) {
      T y = Pairs<T>::round(total);
      p.y[int64_t{blockIdx.y} * p.N + row] = p.bias ? __hadd_rn(y, p.bias[row]) : y;
    }
  };
  __shared__ float sums[kMostWarps][kTileRows];
  for (int piece = from; tile < tiles;) {
#pragma unroll
    for (int slot = 0; slot < kAhead; slot++) {
      if (tile >= tiles) {
        break;
      }
      rows.add(piece, codes[slot], scales[slot]);
      ask(slot);
      if (++piece < to) {
        continue;
      }
      piece = from;
      if (parts > 1) {
        tile = tiles;
        break;
      }
      float totals[2];
      rows.take(totals);
      if (lane % 4 == 0) {
        write(tile * kTileRows + lane / 4, totals[0]);
        write(tile * kTileRows + lane / 4 + 8, totals[1]);
      }
      tile += stride;
    }
  }
  if (parts == 1) {
    return;
  }
  float totals[2];
  rows.take(totals);
  if (lane % 4 == 0) {
    sums[warp][lane / 4] = totals[0];
    sums[warp][lane / 4 + 8] = totals[1];
  }
  __syncthreads();
  int in_block = threadIdx.x / kTileRows;
  if (in_block < of_block && blockIdx.x * of_block + in_block < tiles) {
    float total = 0;
    for (int part = 0; part < parts; part++) {
      total += sums[in_block * parts + part][threadIdx.x % kTileRows];
    }
    write(blockIdx.x * of_block * kTileRows + threadIdx.x, total);
  }
}

} // namespace zmlx::on_cuda::fast
