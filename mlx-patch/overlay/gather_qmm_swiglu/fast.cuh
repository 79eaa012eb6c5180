// The kernel of gather_qmm_swiglu in `fast` precision; fast.cu launches it.
//
// A block has outputs of one product, tiles of eight: of gate and up the same eight rows, so that both sums of an output end in
// one lane. Two warps have a tile, each every other piece. Rows come by bulk copies as in tiled.cuh; a warp of its
// own asks for all of them as soon as the expert is known.

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
  // Scales of gate, its biases, then those of up.
  __host__ __device__ int scales(int i) const {
    return 2 * pieces * tile() + i * ((scale_bytes() + 63) / 64 * 64);
  }
  // Where byte `at` of them lies: 16 bytes of four rows and more, at the same place in each, meet no bank twice.
  static __host__ __device__ int swizzled(int at) {
    return at ^ at / 128 % 4 * 16;
  }
  __host__ __device__ int x() const {
    return scales(4);
  }
  __host__ __device__ int barriers() const {
    return x() + Layout<kBits, kGroup>::bytes(K);
  }
  __host__ __device__ int bytes() const {
    return barriers() + pieces * static_cast<int>(sizeof(uint64_t));
  }
};

// Of a block.
constexpr int swiglu_threads(int tiles) {
  return (tiles * kHalves + 1) * 32;
}

template <typename T, int kBits, int kGroup, int kTiles>
__global__ __launch_bounds__(swiglu_threads(kTiles), kTiles > 3 ? 1 : 2) void fast_swiglu(
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
    for (int i = 0; i < at.pieces; i++) {
      CopyBarrier(barriers + i).init();
    }
    CopyBarrier::all_are_initialized();
  }
  if (warp == kWarps && lane == 0) {
    ask_for_description(p.gate);
    ask_for_description(p.up);
  }
  // rows in an order in which lanes that read together meet no bank twice (cuda/row_tiles.cuh)
  int tile = warp / kHalves, half = warp % kHalves;
  int mine = tile * kTileOutputs + lane / 4 % 2 * 4 + lane / 8;
  uint32_t rows_at[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    uint32_t first = shared_address(shared + at.piece(i, 0)) + mine * kPieceBytes;
    rows_at[i] = (first ^ first / kPieceBytes % 8 * 16) ^ lane % 4 * 16;
  }
  using R = Rows<T, kBits, kGroup>;
  R rows(shared + at.x(), p.K, lane);
  __syncthreads();
  wait_for_inputs();
  let_next_begin();

  uint32_t expert = p.rhs[product];
  auto ask = [&](int piece) {
    int first = static_cast<int>(expert) * p.N + row;
    CopyBarrier barrier(barriers + piece);
    barrier.expect(2 * at.tile());
    barrier.copy_box(shared + at.piece(0, piece), p.gate, first, piece * kPieceBytes);
    barrier.copy_box(shared + at.piece(1, piece), p.up, first, piece * kPieceBytes);
  };
  // Memory answers in the order in which it is asked, so that what every piece needs comes first.
  constexpr int kAsked = 1, kThreads = (kWarps + 1) * 32; // a barrier of the block
  if (warp == kWarps) {
    asm volatile("bar.sync %0, %1;" ::"n"(kAsked), "n"(kThreads) : "memory");
    if (lane == 0) {
      for (int piece = 0; piece < at.pieces; piece++) {
        ask(piece);
      }
    }
    __syncwarp();
  } else {
    // where there is one x nothing says which
    auto* x = p.x + ((p.lhs ? int64_t{p.lhs[p.one_x ? 0 : product]} * p.M : 0) + vector) * p.K;
    stage<T, kBits, kGroup>(shared + at.x(), x, p.K, threadIdx.x, kWarps * 32, [&] {
      const T* of_scales[] = {p.gate_scales, p.gate_biases, p.up_scales, p.up_biases};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        auto* from = reinterpret_cast<const char*>(of_scales[i] + (int64_t{expert} * p.N + row) * at.groups);
        for (int byte = threadIdx.x * 16; byte < at.scale_bytes(); byte += kWarps * 32 * 16) {
          copy_16_bytes(shared + at.scales(i) + at.swizzled(byte), from + byte);
        }
      }
      close_group_of_copies();
      asm volatile("bar.arrive %0, %1;" ::"n"(kAsked), "n"(kThreads) : "memory");
    });
    wait_for_copies(0);
  }
  __syncthreads();
  if (warp < kWarps) {
    for (int piece = half; piece < at.pieces; piece += kHalves) {
      typename R::Scales scales;
      auto* of_piece = shared + at.swizzled((mine * at.groups + piece * Layout<kBits, kGroup>::kPiece / kGroup) * 2);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        R::read(scales.scales[i], reinterpret_cast<const T*>(of_piece + at.scales(2 * i)));
        R::read(scales.biases[i], reinterpret_cast<const T*>(of_piece + at.scales(2 * i + 1)));
      }
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
