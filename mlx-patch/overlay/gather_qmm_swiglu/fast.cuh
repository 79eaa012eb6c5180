// The kernel of gather_qmm_swiglu in `fast` precision; fast.cu launches it.
//
// A block has outputs of one product, tiles of eight: of gate and up the same eight rows, so that both sums of an output end in
// one lane. Two warps have a tile, each every other piece. Rows come by bulk copies as in tiled.cuh, all of them asked for as soon
// as the expert is known, or by a warp of their own a few pieces ahead.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/fast_rows.cuh"
#include "cuda/glu.cuh"
#include "gather_qmm_swiglu/tiled.cuh"

namespace zmlx::on_cuda::fast {

inline constexpr int kTileOutputs = 8;
// Warps of a tile.
inline constexpr int kHalves = 2;

// What lies where in the shared memory of a block.
template <typename T, int kBits, int kGroup>
struct SwigluShared {
  int outputs, pieces, groups, K;

  __host__ __device__ SwigluShared(int K, int tiles)
      : outputs(tiles * kTileOutputs), pieces(K / Layout<kBits, kGroup>::kPiece), groups(K / kGroup), K(K) {}

  // A piece of one matrix, whose rows are a multiple of eight.
  __host__ __device__ int tile() const {
    return outputs * kPieceBytes;
  }
  // Of gate, 0, or up.
  __host__ __device__ int piece(int matrix, int piece) const {
    return (matrix * pieces + piece) * tile();
  }
  __host__ __device__ int scale_bytes() const {
    return outputs * groups * static_cast<int>(sizeof(T));
  }
  // Scales and biases of gate, then those of up.
  __host__ __device__ int scales(int i) const {
    return 2 * pieces * tile() + i * scale_bytes();
  }
  __host__ __device__ int x() const {
    return scales(4);
  }
  // One for each piece, and one for scales.
  __host__ __device__ int barriers() const {
    return x() + Layout<kBits, kGroup>::bytes(K);
  }
  __host__ __device__ int bytes() const {
    return barriers() + (pieces + 1) * static_cast<int>(sizeof(uint64_t));
  }
};

// kPaced: pieces on their way at a time, asked for by a warp behind the others; 0: all, by the warps that multiply.
constexpr int swiglu_threads(int tiles) {
  return (tiles * kHalves + 1) * 32;
}

template <typename T, int kBits, int kGroup, int kTiles, int kPaced = 4, int kBlocks = 6 / kTiles>
__global__ __launch_bounds__((kTiles * kHalves + (kPaced > 0)) * 32, kBlocks) void fast_swiglu(
    const __grid_constant__ TiledSwiglu<T> p) {
#if __CUDA_ARCH__ >= 900 // others have no bulk copies, and are refused
  extern __shared__ __align__(kSwizzleBytes) char shared[];
  __shared__ float sums[kHalves][2][kTiles * kTileOutputs];
  constexpr int kWarps = kTiles * kHalves;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  SwigluShared<T, kBits, kGroup> at(p.K, kTiles);
  auto* barriers = reinterpret_cast<uint64_t*>(shared + at.barriers());
  int blocks = p.N / at.outputs;
  int line = blockIdx.x / blocks; // of y
  int row = (blockIdx.x - line * blocks) * at.outputs;
  int product = line / p.M, vector = line - product * p.M;
  if (threadIdx.x == 0) {
    for (int i = 0; i <= at.pieces; i++) {
      CopyBarrier(barriers + i).init();
    }
    CopyBarrier::all_are_initialized();
  }
  if (lane == 0) {
    ask_for_description(p.gate);
    ask_for_description(p.up);
  }
  // rows in an order in which lanes that read together meet no bank twice (cuda/row_tiles.cuh)
  int tile = warp / kHalves, half = warp % kHalves;
  int mine = tile * kTileOutputs + lane / 4 % 2 * 4 + lane / 8;
  uint32_t rows_at[2];
  Source<T> source;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    uint32_t first = shared_address(shared + at.piece(i, 0)) + mine * kPieceBytes;
    rows_at[i] = (first ^ first / kPieceBytes % 8 * 16) ^ lane % 4 * 16;
    source.scales[i] = reinterpret_cast<const T*>(shared + at.scales(2 * i)) + mine * at.groups;
    source.biases[i] = reinterpret_cast<const T*>(shared + at.scales(2 * i + 1)) + mine * at.groups;
  }
  using R = Rows<T, kBits, kGroup>;
  R rows(shared + at.x(), p.K, lane);
  __syncthreads();
  wait_for_inputs();
  let_next_begin();

  int64_t first = 0; // row of the matrices
  auto ask = [&](int piece) {
    CopyBarrier barrier(barriers + piece);
    barrier.expect(2 * at.tile());
    barrier.copy_box(shared + at.piece(0, piece), p.gate, first, piece * kPieceBytes);
    barrier.copy_box(shared + at.piece(1, piece), p.up, first, piece * kPieceBytes);
  };
  auto ask_for_scales = [&] {
    CopyBarrier barrier(barriers + at.pieces);
    barrier.expect(4 * at.scale_bytes());
    barrier.copy(shared + at.scales(0), p.gate_scales + first * at.groups, at.scale_bytes());
    barrier.copy(shared + at.scales(1), p.gate_biases + first * at.groups, at.scale_bytes());
    barrier.copy(shared + at.scales(2), p.up_scales + first * at.groups, at.scale_bytes());
    barrier.copy(shared + at.scales(3), p.up_biases + first * at.groups, at.scale_bytes());
  };
  if (kPaced > 0 && warp == kWarps) {
    if (lane == 0) {
      first = int64_t{p.rhs[product]} * p.N + row;
      ask(0);
      ask_for_scales();
      for (int piece = 1; piece < at.pieces; piece++) {
        if (piece >= kPaced) {
          CopyBarrier(barriers + piece - kPaced).wait(0);
        }
        ask(piece);
      }
    }
    __syncwarp();
  } else {
    if (kPaced == 0 && lane == 0 && warp <= at.pieces) {
      first = int64_t{p.rhs[product]} * p.N + row;
      if (warp == min(at.pieces, kWarps - 1)) {
        ask_for_scales();
      }
      for (int piece = warp; piece < at.pieces; piece += kWarps) {
        ask(piece);
      }
    }
    __syncwarp();
    // where there is one x nothing says which
    auto* x = p.x + ((p.lhs ? int64_t{p.lhs[p.one_x ? 0 : product]} * p.M : 0) + vector) * p.K;
    stage<T, kBits, kGroup>(shared + at.x(), x, p.K, threadIdx.x, kWarps * 32);
  }
  __syncthreads();
  if (warp < kWarps) {
    CopyBarrier(barriers + at.pieces).wait(0);
    for (int piece = half; piece < at.pieces; piece += kHalves) {
      typename R::Scales scales;
      R::load(scales, source, piece);
      CopyBarrier(barriers + piece).wait(0);
      typename R::Codes codes;
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int span = 0; span < 2; span++) {
          auto& c = codes.of[i][span];
          asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                       : "=r"(c.x), "=r"(c.y), "=r"(c.z), "=r"(c.w)
                       : "r"((rows_at[i] ^ span * kSpanBytes) + piece * at.tile()));
        }
      }
      rows.add(piece, codes, scales);
    }
    float totals[2];
    rows.take(totals);
    if (lane % 4 < 2) {
      sums[half][lane % 4][mine] = lane % 4 ? totals[1] : totals[0];
    }
  }
  __syncthreads();
  if (threadIdx.x < at.outputs) {
    float gate = sums[0][0][threadIdx.x] + sums[1][0][threadIdx.x], up = sums[0][1][threadIdx.x] + sums[1][1][threadIdx.x];
    p.y[int64_t{line} * p.N + row + threadIdx.x] = Pairs<T>::round(gate / (1 + __expf(-gate)) * up);
  }
#endif
}

} // namespace zmlx::on_cuda::fast
