// Products of one vector by one or several matrices in `fast` precision (cuda/fast_rows.cuh), a launch that asks for its weights
// before its vector is there.
//
// A warp has tiles of 16 rows, of which several warps may have a part along K each. Where x is the norm of a sum, every block
// adds by itself, and multiplies by what norms the row at the end.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/fast_rows.cuh"
#include "quantized_matmul/held.cuh"

namespace zmlx::on_cuda::fast {

inline constexpr int kTileRows = 16;

// Most warps of a block, and matrices of a launch.
inline constexpr int kMostWarps = 16;

template <typename T>
struct Products {
  Normed<T> in; // x [lines, K], or the norm of one
  EightRows<T> weights[kMostJoined]; // [its rows, K]
  T* y[kMostJoined]; // [lines, its rows]
  const T* bias; // of the first matrix, or null
  int rows[kMostJoined];
  int ends[kMostJoined]; // tiles of all matrices up to this one; of those behind the last, as many
  int K;
  int parts; // warps of a tile: where they are several, every block has all of its tiles at once
};

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

// x, or x + r by the norm's weight, as Rows has it; returns what the sums are to be multiplied by. All threads come.
template <typename T, int kBits, int kGroup, bool kNorm>
__device__ float stage_products(char* shared, const Products<T>& p) {
  if constexpr (!kNorm) {
    stage<T, kBits, kGroup>(shared, p.in.x + int64_t{blockIdx.y} * p.K, p.K, threadIdx.x, blockDim.x);
    __syncthreads();
    return 1;
  } else {
    __shared__ float squares_of_warps[kMostWarps];
    float squares = 0;
    bool writes = blockIdx.x == 0;
    for (int first = 0; first < p.K / 8; first += blockDim.x) {
      int i = first + threadIdx.x;
      float values[8] = {};
      if (i < p.K / 8) {
        uint4 a = reinterpret_cast<const uint4*>(p.in.x)[i], b = reinterpret_cast<const uint4*>(p.in.r)[i];
        uint4 weight = reinterpret_cast<const uint4*>(p.in.weight)[i], sum;
#pragma unroll
        for (int j = 0; j < 4; j++) {
          auto pair = __hadd2_rn(as_pair<T>(reinterpret_cast<uint32_t*>(&a)[j]), as_pair<T>(reinterpret_cast<uint32_t*>(&b)[j]));
          auto by = as_pair<T>(reinterpret_cast<uint32_t*>(&weight)[j]);
          reinterpret_cast<uint32_t*>(&sum)[j] = as_word(pair);
          float low = static_cast<float>(pair.x), high = static_cast<float>(pair.y);
          squares += low * low + high * high;
          values[2 * j] = low * static_cast<float>(by.x);
          values[2 * j + 1] = high * static_cast<float>(by.y);
        }
        if (writes) {
          reinterpret_cast<uint4*>(p.in.sum)[i] = sum;
        }
      }
      stage_eight<kBits, kGroup>(shared, p.K, i, values);
    }
    squares = sum_over_warp(squares);
    if (threadIdx.x % 32 == 0) {
      squares_of_warps[threadIdx.x / 32] = squares;
    }
    __syncthreads();
    squares = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) {
      squares += squares_of_warps[warp];
    }
    float factor = normalizer(squares, p.K, p.in.eps);
    if (writes) {
      for (int i = threadIdx.x; i < p.K; i += blockDim.x) {
        p.in.normed[i] = normalized(__hadd_rn(p.in.x[i], p.in.r[i]), factor, p.in.weight[i]);
      }
    }
    return factor;
  }
}

// `kAhead`: pieces of a warp that are on their way, or wait until x is there.
template <typename T, int kBits, int kGroup, bool kNorm, int kAhead = 2, int kWarps = kMostWarps, int kBlocks = 1>
__global__ __launch_bounds__(kWarps * 32, kBlocks) void fast_products(const __grid_constant__ Products<T> p) {
  extern __shared__ __align__(16) char shared[];
  using R = Rows<T, kBits, kGroup>;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int of_block = blockDim.x / 32 / p.parts, mine = warp / p.parts;
  int tiles = p.ends[kMostJoined - 1], stride = gridDim.x * of_block;
  int pieces = p.K / Layout<kBits, kGroup>::kPiece, each = (pieces + p.parts - 1) / p.parts, part = warp - mine * p.parts;
  int from = part * each, to = min(from + each, pieces);
  int tile = from < to ? blockIdx.x * of_block + mine : tiles;

  // which matrix, and row in it, of a tile
  auto matrix = [&](int tile, int& row) {
    int m = (tile >= p.ends[0]) + (tile >= p.ends[1]) + (tile >= p.ends[2]);
    row = (tile - (m ? p.ends[m - 1] : 0)) * kTileRows + lane / 4;
    return m;
  };
  Source<T> source;
  auto begin = [&](int tile) {
    int row;
    int m = matrix(tile, row);
    auto& weights = p.weights[m];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int64_t at = min(row + 8 * i, p.rows[m] - 1);
      source.w[i] = weights.w + at * (p.K / 8 * kBits);
      source.scales[i] = weights.scales + at * (p.K / kGroup);
      source.biases[i] = weights.biases + at * (p.K / kGroup);
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
        asked_tile += p.parts > 1 ? tiles : stride;
      }
    }
  };
#pragma unroll
  for (int slot = 0; slot < kAhead; slot++) {
    ask(slot);
  }
  wait_for_inputs();
  let_next_begin();
  float factor = stage_products<T, kBits, kGroup, kNorm>(shared, p);

  Rows<T, kBits, kGroup> rows(shared, p.K, lane);
  auto write = [&](int tile, int row_of_tile, float total) {
    int row;
    int m = matrix(tile, row);
    row += row_of_tile - lane / 4;
    if (row < p.rows[m]) {
      T y = Pairs<T>::round(total * factor);
      p.y[m][int64_t{blockIdx.y} * p.rows[m] + row] = p.bias ? __hadd_rn(y, p.bias[row]) : y;
    }
  };
  __shared__ float sums[kWarps][kTileRows];
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
      if (p.parts > 1) {
        tile = tiles;
        break;
      }
      float totals[2];
      rows.take(totals);
      if (lane % 4 == 0) {
        write(tile, lane / 4, totals[0]);
        write(tile, lane / 4 + 8, totals[1]);
      }
      tile += stride;
    }
  }
  if (p.parts == 1) {
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
    for (int part = 0; part < p.parts; part++) {
      total += sums[in_block * p.parts + part][threadIdx.x % kTileRows];
    }
    write(blockIdx.x * of_block + in_block, threadIdx.x % kTileRows, total);
  }
}

} // namespace zmlx::on_cuda::fast
