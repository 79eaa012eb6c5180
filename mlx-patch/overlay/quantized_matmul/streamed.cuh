// A product of one vector by a matrix of many rows, as the logits are.
//
// Tiles of 16 rows come by bulk copies, which no thread has to carry, several at a time; a warp has two rows of each, so that
// what it reads of x counts twice. The bits are those of kernel.cuh.

#pragma once

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

// A barrier in shared memory that counts the bytes of copies.
class CopyBarrier {
 public:
  __device__ explicit CopyBarrier(uint64_t* barrier)
      : at_(static_cast<uint32_t>(__cvta_generic_to_shared(barrier))) {}

  __device__ void init() const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at_) : "memory");
  }

  __device__ void expect(uint32_t bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at_), "r"(bytes) : "memory");
  }

  __device__ void copy(char* shared, const void* global, uint32_t bytes) const {
    auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(global), "r"(bytes), "r"(at_)
                 : "memory");
  }

  // Until the copies of phase `phase`, counted from 0, are there.
  __device__ void wait(int phase) const {
    uint32_t done = 0;
    while (!done) {
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(at_), "r"(phase & 1)
          : "memory");
    }
  }

 private:
  uint32_t at_;
};

template <typename T, int kBits, int kGroup>
__global__ __launch_bounds__(kProductWarps * 32, 2) void streamed_product(const __grid_constant__ Product<T> p) {
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
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
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
}

} // namespace zmlx::on_cuda
