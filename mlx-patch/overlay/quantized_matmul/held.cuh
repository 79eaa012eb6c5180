// Products of one vector by one or several matrices of 4 bits, a launch that is ready before its vector is.
//
// A warp has two rows, or half of the words of longer ones, and the bits of stock's `qmv`, as in kernel.cuh. While the launch
// before it still runs it asks for its weights and dequantizes them into registers; what is left once x can be read is one
// multiply-add for two values. Where x is the norm of a sum, every block adds and norms by itself, in the order of
// add_rms_norm: less than what a launch of its own takes.

#pragma once

#include <algorithm>

#include "cuda/rows.cuh"
#include "quantized_matmul/kernel.cuh"

namespace zmlx::on_cuda {

// Most values of each of two rows that a warp holds: two warps have longer ones.
inline constexpr int kMostHeld = 2048;

// Most warps of a block. Two blocks of so many leave room for a launch that still runs.
inline constexpr int kMostHeldWarps = 10;

// What products read: x, or where there is an `r` the norm of x + r.
template <typename T>
struct Normed {
  const T* x; // [K]
  const T* r;
  const T* weight; // of the norm
  T* sum; // x + r
  T* normed;
  float eps;
  int threads; // of stock's block
};

// Threads of the block in which stock norms rows of `size` values (`dispatch_num_chunks` in mlx/backend/cuda/rms_norm.cu).
template <typename T>
int norm_threads(int size) {
  int reads = (size + kReads<T> - 1) / kReads<T>;
  bool narrow = reads <= 64 || (reads % 128 != 0 && reads % 64 == 0 && reads / 64 <= 8);
  return narrow ? 64 : 128;
}

// Shared memory for a vector: as it is staged and, where it is normed, as it comes and the norm's weight.
template <int kBits>
constexpr size_t held_vector_bytes(int K, bool normed) {
  return bytes_of_x<kBits>(K) + (normed ? size_t{4} * K : 0);
}

// Before x can be read.
template <typename T, int kBits>
__device__ void ask_for_norm(const Normed<T>& p, int K, char* shared) {
  auto* weight = reinterpret_cast<uint4*>(shared + bytes_of_x<kBits>(K) + 2 * K);
  for (int i = threadIdx.x; i < K / 8; i += blockDim.x) {
    weight[i] = reinterpret_cast<const uint4*>(p.weight)[i];
  }
}

// x in shared memory in the order of LaneSums. All threads come. `meanwhile` is what a thread does until x comes.
template <typename T, typename Meanwhile>
__device__ void stage_held(const Normed<T>& p, int K, char* shared, Meanwhile meanwhile) {
  auto* x = reinterpret_cast<const uint4*>(p.x);
  uint4 a = {};
  if (threadIdx.x < K / 8) {
    a = x[threadIdx.x];
  }
  meanwhile();
  for (int i = threadIdx.x; i < K / 8; i += blockDim.x) {
    LaneSums<T, 4>::stage(shared, i, i == threadIdx.x ? a : x[i]);
  }
  __syncthreads();
}

// The same of the norm. `writes`: one of the blocks that have the same x.
template <typename T, int kBits, typename Meanwhile>
__device__ void stage_normed(const Normed<T>& p, int K, char* shared, bool writes, Meanwhile meanwhile) {
  __shared__ float sums_of_warps[4];
  auto* raw = reinterpret_cast<uint4*>(shared + bytes_of_x<kBits>(K));
  auto* weight = raw + K / 8;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint4 a = {}, b = {};
  auto ask = [&](int i) {
    a = reinterpret_cast<const uint4*>(p.x)[i];
    b = reinterpret_cast<const uint4*>(p.r)[i];
  };
  if (threadIdx.x < K / 8) {
    ask(threadIdx.x);
  }
  meanwhile();
  for (int i = threadIdx.x; i < K / 8; i += blockDim.x) {
    if (i != threadIdx.x) {
      ask(i);
    }
    uint4 sum;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      auto of_a = as_pair<T>(reinterpret_cast<uint32_t*>(&a)[j]), of_b = as_pair<T>(reinterpret_cast<uint32_t*>(&b)[j]);
      reinterpret_cast<uint32_t*>(&sum)[j] = as_word(__hadd2_rn(of_a, of_b));
    }
    raw[i] = sum;
    if (writes) {
      reinterpret_cast<uint4*>(p.sum)[i] = sum;
    }
  }
  if (threadIdx.x < 4) {
    sums_of_warps[threadIdx.x] = 0;
  }
  __syncthreads();
  if (warp < p.threads / 32) {
    float squares = 0;
    for (int i = threadIdx.x; i < K / 8; i += p.threads) {
      uint4 chunk = raw[i];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        auto pair = as_pair<T>(reinterpret_cast<uint32_t*>(&chunk)[j]);
        squares = __fmaf_rn(static_cast<float>(pair.x), static_cast<float>(pair.x), squares);
        squares = __fmaf_rn(static_cast<float>(pair.y), static_cast<float>(pair.y), squares);
      }
    }
    squares = sum_over_warp(squares);
    if (lane == 0) {
      sums_of_warps[warp] = squares;
    }
  }
  __syncthreads();
  // as sum_over_warp adds four sums and zeros
  float squares =
      __fadd_rn(__fadd_rn(sums_of_warps[0], sums_of_warps[2]), __fadd_rn(sums_of_warps[1], sums_of_warps[3]));
  float factor = normalizer(squares, K, p.eps);
  for (int i = threadIdx.x; i < K / 8; i += blockDim.x) {
    uint4 chunk = raw[i], by = weight[i], normed;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      reinterpret_cast<T*>(&normed)[j] =
          normalized(reinterpret_cast<T*>(&chunk)[j], factor, reinterpret_cast<T*>(&by)[j]);
    }
    LaneSums<T, kBits>::stage(shared, i, normed);
    if (writes) {
      reinterpret_cast<uint4*>(p.normed)[i] = normed;
    }
  }
  __syncthreads();
}

// What a warp holds of two rows: both words of a lane in every turn, or with kHalves = 2 one of them. Those of the first row
// are dequantized when they come, those of the second when they are used: what both take is more than a multiprocessor has
// while the launch before this one still runs there.
template <typename T, int kGroup, int kHalves>
class HeldRows {
  using Pair = typename Pairs<T>::Pair;
  static constexpr int kTurns = kHalves * kMostHeld / kTurn<4>;
  static constexpr int kWords = 2 / kHalves;

 public:
  // Sums of eight values of a lane, those of one word in every turn, of each row.
  struct Sums {
    Pair of_row[2][4];
  };

  __device__ void ask(const EightRows<T>& rows, int K, int lane, int half) {
    codes_[0].ask(rows, 0, K, lane, half);
    codes_[1].ask(rows, 1, K, lane, half);
  }

  __device__ void dequantize() {
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
#pragma unroll
      for (int word = 0; word < kWords; word++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          first_[turn][word][i] = codes_[0].weights(turn, word, i);
        }
      }
    }
  }

  // Of word `word` of those held, by word `of_x` of x.
  __device__ Sums multiply(const char* x, int K, int lane, int word, int of_x) const {
    Sums sums;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      sums.of_row[i / 4][i % 4] = Pairs<T>::round2(0, 0);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
      if (turn * kTurn<4> + lane * 16 < K) {
        uint4 values = *reinterpret_cast<const uint4*>(x + turn * 1024 + of_x * 512 + lane * 16);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          Pair v = as_pair<T>(reinterpret_cast<const uint32_t*>(&values)[i]);
          sums.of_row[0][i] = __hfma2(v, as_pair<T>(first_[turn][word][i]), sums.of_row[0][i]);
          sums.of_row[1][i] = __hfma2(v, as_pair<T>(codes_[1].weights(turn, word, i)), sums.of_row[1][i]);
        }
      }
    }
    return sums;
  }

  // Adds them to the totals of the lane in their order.
  static __device__ void add(float (&totals)[2], const Sums& sums) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int row = 0; row < 2; row++) {
        Pair pair = sums.of_row[row][i % 4];
        totals[row] = __fadd_rn(totals[row], static_cast<float>(i / 4 ? pair.y : pair.x));
      }
    }
  }

 private:
  struct Codes {
    uint32_t codes[kTurns][kWords];
    Pair scale_bias[kTurns];

    __device__ void ask(const EightRows<T>& rows, int row, int K, int lane, int half) {
#pragma unroll
      for (int turn = 0; turn < kTurns; turn++) {
        int k = turn * kTurn<4> + lane * 16;
        if (k < K) {
          auto* w = rows.w + (row * K + k) / 2;
          if constexpr (kWords == 2) {
            uint2 both = __ldcs(reinterpret_cast<const uint2*>(w));
            codes[turn][0] = both.x;
            codes[turn][1] = both.y;
          } else {
            codes[turn][0] = reinterpret_cast<const uint32_t*>(w)[half];
          }
          scale_bias[turn].x = rows.scales[(row * K + k) / kGroup];
          scale_bias[turn].y = rows.biases[(row * K + k) / kGroup];
        }
      }
    }

    __device__ uint32_t weights(int turn, int word, int i) const {
      Pair scale, bias;
      scale.x = scale.y = scale_bias[turn].x;
      bias.x = bias.y = scale_bias[turn].y;
      return dequantized<T>(codes[turn][word] >> (4 * i), scale, bias);
    }
  };

  uint32_t first_[kTurns][kWords][4];
  Codes codes_[2];
};

// Two rows by the staged x: of all lanes, in lane 0. With kHalves = 2 all threads of the block come.
template <typename T, int kGroup, int kHalves>
__device__ void multiply_held(
    const HeldRows<T, kGroup, kHalves>& held, const char* x, int K, int lane, int half, float (&totals)[2]) {
  using Rows = HeldRows<T, kGroup, kHalves>;
  totals[0] = totals[1] = 0;
  auto sums = held.multiply(x, K, lane, 0, half);
  if constexpr (kHalves == 1) {
    Rows::add(totals, sums);
    Rows::add(totals, held.multiply(x, K, lane, 1, 1));
  } else {
    __shared__ typename Rows::Sums handed[kMostHeldWarps / 2][32];
    int pair = threadIdx.x / 64;
    if (half == 1) {
      handed[pair][lane] = sums;
    }
    __syncthreads();
    Rows::add(totals, sums);
    Rows::add(totals, handed[pair][lane]);
  }
  totals[0] = sum_over_warp(totals[0]);
  totals[1] = sum_over_warp(totals[1]);
}

// Most matrices of one launch.
inline constexpr int kMostJoined = 4;

template <typename T>
struct HeldProducts {
  Normed<T> in;
  EightRows<T> weights[kMostJoined]; // [its rows, K]
  T* y[kMostJoined];
  int ends[kMostJoined]; // rows of all matrices up to this one; of those behind the last, as many
  int K;
};

// Warps of a block for so many rows: as few as let two blocks on every multiprocessor have all of them.
inline int held_warps(int64_t rows, int halves, int multiprocessors) {
  int64_t warps = (rows / 2 * halves + 2 * multiprocessors - 1) / (2 * multiprocessors);
  return static_cast<int>(std::clamp<int64_t>((warps + 1) / 2 * 2, 4, kMostHeldWarps));
}

template <typename T, int kGroup, int kHalves, bool kNorm>
__global__ __launch_bounds__(kMostHeldWarps * 32, 3) void held_products(const __grid_constant__ HeldProducts<T> p) {
  extern __shared__ __align__(16) char shared[];
  int lane = threadIdx.x % 32, half = threadIdx.x / 32 % kHalves;
  int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32 / kHalves * 2;
  bool mine = row < p.ends[kMostJoined - 1];
  HeldRows<T, kGroup, kHalves> held;
  T* y = nullptr;
  if (mine) {
    int m = (row >= p.ends[0]) + (row >= p.ends[1]) + (row >= p.ends[2]);
    int64_t of_matrix = row - (m ? p.ends[m - 1] : 0);
    auto& matrix = p.weights[m];
    held.ask({matrix.w + of_matrix * (p.K / 2), matrix.scales + of_matrix * (p.K / kGroup),
              matrix.biases + of_matrix * (p.K / kGroup)},
             p.K, lane, half);
    y = p.y[m] + of_matrix;
  }
  if constexpr (kNorm) {
    ask_for_norm<T, 4>(p.in, p.K, shared);
  }
  wait_for_inputs();
  let_next_begin();
  if constexpr (kNorm) {
    stage_normed<T, 4>(p.in, p.K, shared, blockIdx.x == 0, [&] { held.dequantize(); });
  } else {
    stage_held(p.in, p.K, shared, [&] { held.dequantize(); });
  }
  float totals[2];
  multiply_held(held, shared, p.K, lane, half, totals);
  if (mine && half == 0 && lane == 0) {
    *reinterpret_cast<typename Pairs<T>::Pair*>(y) = Pairs<T>::round2(totals[0], totals[1]);
  }
}

} // namespace zmlx::on_cuda
