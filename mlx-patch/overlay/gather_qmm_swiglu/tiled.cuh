// The kernel of gather_qmm_swiglu for eight products and more, each by itself, where rows come by bulk copies; tiled.cu
// launches it.
//
// A block has outputs of one product, a warp four of them: of gate and up the same four rows, in turn. One thread asks for
// weights as soon as it knows the expert, a few pieces ahead of what is multiplied: of more at once the first pieces come
// hardly before the last.

#pragma once

#include <algorithm>

#include "cuda/depend.cuh"
#include "cuda/glu.cuh"
#include "cuda/row_tiles.cuh"
#include "cuda/tile.h"

namespace zmlx::on_cuda {

template <typename T>
struct TiledSwiglu {
  CUtensorMap gate, up; // [experts * N, bytes of a row], in boxes of a block's rows
  const T *gate_scales, *gate_biases, *up_scales, *up_biases;
  const T* x; // [.., M, K]
  const uint32_t* lhs; // for each of `products` which x, or one for all of them
  const uint32_t* rhs; // and which expert
  T* y; // [products, M, N]
  int K, N, M;
  bool one_x;
};

// Outputs of a warp, most warps of a block, and pieces that are on their way at a time.
inline constexpr int kTiledOutputs = 4;
inline constexpr int kMostTiledWarps = 12;
inline constexpr int kPiecesAhead = 3;

// What lies where in the shared memory of a block.
template <typename T, int kBits, int kGroup>
struct TiledSwigluShared {
  int K, outputs, pieces, groups;

  __host__ __device__ TiledSwigluShared(int K, int warps)
      : K(K), outputs(warps * kTiledOutputs), pieces(K / kPieceValues<kBits>), groups(K / kGroup) {}

  // A piece of one matrix.
  __host__ __device__ int tile() const {
    return (outputs * kPieceBytes + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes;
  }
  // Of matrix 0, gate, or 1, whose rows meet other banks.
  __host__ __device__ int tiles(int matrix) const {
    return matrix * (pieces * tile() + kSwizzleBytes / 2);
  }
  __host__ __device__ int scale_bytes() const {
    return outputs * groups * static_cast<int>(sizeof(T));
  }
  // Scales and biases of gate, then those of up.
  __host__ __device__ int scales(int i) const {
    return tiles(1) + pieces * tile() + i * scale_bytes();
  }
  __host__ __device__ int x() const {
    return scales(4);
  }
  __host__ __device__ int barriers() const {
    return x() + K * static_cast<int>(sizeof(T));
  }
  __host__ __device__ int bytes() const {
    return barriers() + pieces * static_cast<int>(sizeof(uint64_t));
  }
  // Whether bulk copies can have the scales of a block: multiples of 16 bytes.
  __host__ __device__ bool fits() const {
    return scale_bytes() % 16 == 0 && bytes() <= static_cast<int>(kMostShared);
  }
};

// Warps of a block: as many as make every multiprocessor have about one block, if there are `all` and `in_line` of them have
// outputs of one product; 0 if no number of them can be.
template <typename T, int kBits, int kGroup>
int tiled_swiglu_warps(int K, int64_t all, int in_line, int multiprocessors) {
  auto wanted = std::min<int64_t>((all + multiprocessors - 1) / multiprocessors, kMostTiledWarps);
  int warps = 0;
  for (int n = 1; n <= wanted; n++) {
    if (in_line % n == 0 && TiledSwigluShared<T, kBits, kGroup>(K, n).fits()) {
      warps = n;
    }
  }
  return warps;
}

// Shared memory to ask for: where every multiprocessor has a block, more than half of it, since blocks of two launches that
// overlap may else come to lie two to a multiprocessor while others have none.
template <typename T, int kBits, int kGroup>
size_t tiled_swiglu_shared(int K, int warps, int64_t blocks, int multiprocessors) {
  size_t needed = TiledSwigluShared<T, kBits, kGroup>(K, warps).bytes();
  return blocks <= multiprocessors ? std::max(needed, kMostShared / 2 + 4096) : needed;
}

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kMostTiledWarps * 32, 2) void gather_qmm_swiglu_tiled(
    const __grid_constant__ TiledSwiglu<T> p) {
#if __CUDA_ARCH__ >= 900 // others have no bulk copies, and are refused
  extern __shared__ __align__(kSwizzleBytes) char tiles[];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  TiledSwigluShared<T, kBits, kGroup> at(p.K, warps);
  auto* barriers = reinterpret_cast<uint64_t*>(tiles + at.barriers());
  int blocks = p.N / at.outputs;
  int line = blockIdx.x / blocks; // of y
  int row = blockIdx.x % blocks * at.outputs;
  int product = line / p.M, vector = line % p.M;
  if (threadIdx.x == 0) {
    ask_for_description(p.gate);
    ask_for_description(p.up);
    for (int piece = 0; piece < at.pieces; piece++) {
      CopyBarrier(barriers + piece).init();
    }
    CopyBarrier::all_are_initialized();
  }
  wait_for_inputs();
  let_next_begin();

  int first = 0; // row of the matrices, in the thread that asks
  auto ask = [&](int piece) {
    CopyBarrier barrier(barriers + piece);
    barrier.expect(2 * at.outputs * kPieceBytes + (piece == 0 ? 4 * at.scale_bytes() : 0));
    if (piece == 0) {
      int64_t of_scales = int64_t{first} * at.groups;
      barrier.copy(tiles + at.scales(0), p.gate_scales + of_scales, at.scale_bytes());
      barrier.copy(tiles + at.scales(1), p.gate_biases + of_scales, at.scale_bytes());
      barrier.copy(tiles + at.scales(2), p.up_scales + of_scales, at.scale_bytes());
      barrier.copy(tiles + at.scales(3), p.up_biases + of_scales, at.scale_bytes());
    }
    barrier.copy_box(tiles + at.tiles(0) + piece * at.tile(), p.gate, first, piece * kPieceBytes);
    barrier.copy_box(tiles + at.tiles(1) + piece * at.tile(), p.up, first, piece * kPieceBytes);
  };
  if (threadIdx.x == 0) {
    first = static_cast<int>(p.rhs[product]) * p.N + row;
    for (int piece = 0; piece < min(at.pieces, kPiecesAhead); piece++) {
      ask(piece);
    }
  }
  int asking = warps > 1 ? 32 : 0; // threads of the warp that asks
  if (threadIdx.x >= asking) {
    auto* x = p.x + (int64_t{p.lhs[p.one_x ? 0 : product]} * p.M + vector) * p.K;
    stage_quads<T, kBits>(tiles + at.x(), x, p.K, threadIdx.x - asking, blockDim.x - asking);
  }
  __syncthreads();

  int matrix = lane / 4 % 2, mine = warp * kTiledOutputs + lane / 8;
  auto* scales = reinterpret_cast<const T*>(tiles + at.scales(2 * matrix)) + mine * at.groups;
  auto* biases = reinterpret_cast<const T*>(tiles + at.scales(2 * matrix + 1)) + mine * at.groups;
  TiledProduct<T, kBits, kGroup> rows(tiles + at.tiles(matrix), mine, scales, biases, tiles + at.x(), lane);
  float of_gate = rows.multiply(at.pieces, at.tile(), [&](int piece) {
    CopyBarrier(barriers + piece).wait(0);
    if (threadIdx.x == 0 && piece + kPiecesAhead < at.pieces) {
      ask(piece + kPiecesAhead);
    }
    __syncwarp();
  });
  float of_up = __shfl_down_sync(0xffffffff, of_gate, 4);
  if (lane % 8 == 0) {
    p.y[int64_t{line} * p.N + row + mine] = silu_gated(Pairs<T>::round(of_gate), Pairs<T>::round(of_up));
  }
#endif
}

} // namespace zmlx::on_cuda
