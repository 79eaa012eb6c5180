// Quantized weights by many lines of x, with the bits of stock's `qmm_sm80` (mma.cuh says what decides them), and of its
// `qmm_naive`, which takes other numbers of rows in the same order. Stock multiplies every line of an expert by itself: here
// its weights are read and dequantized once for up to 64 lines.
//
// A block has 128 rows of weights, by which it goes through K in steps of 64 values, the next of which are on their way while
// tensor cores multiply. Weights pass through registers, a row in four lanes, where those of the next step are dequantized in
// the meantime; x stays in shared memory. With two matrices, 64 rows of each, both sums of an output end in one lane.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/glu.cuh"
#include "cuda/tile.h"
#include "cuda/weights.cuh"
#include "cuda/wgmma.cuh"

namespace zmlx::on_cuda {

// Rows of codes [.., K], of scales and, where the weights have them, biases of groups; and what is added to each row's outputs,
// where there is something.
template <typename T>
struct GroupedMatrix {
  const char *w, *scales, *biases;
  const T* bias;
};

template <typename T, int kMatrices>
struct Grouped {
  const T* x; // rows of K
  // Of experts; null for one matrix alone, by `num_lines` rows of x, `tile_lines` in a tile.
  const Tile* tiles;
  const Line* lines;
  GroupedMatrix<T> weights[kMatrices]; // of expert 0
  T* y; // [lines, N]
  int K, N;
  uint32_t num_lines, tile_lines;
  Joined<T> joined; // what becomes of the outputs of two matrices

  __device__ Tile tile(uint32_t i) const {
    uint32_t first = i * tile_lines;
    return tiles ? tiles[i] : Tile{0, first, min(tile_lines, num_lines - first)};
  }

  __device__ Line line(uint32_t i) const {
    return lines ? lines[i] : Line{i, i};
  }
};

__device__ inline void copy_16_bytes_of_line(char* shared, const char* global) {
  uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

__device__ inline void load_four_matrices(uint32_t (&to)[4], const char* shared) {
  uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

// One tile of up to 16 * kSixteens lines by 128 rows of weights. In shared memory lie, one behind the other,
//   x       kStages times 64 values of every line
//   codes   so many pieces of 64 bytes of every row, of two steps for 4 bits
//   scales  and biases of every row
// Of rows of 64, 128 and more bytes the pieces of 16 are in another order in every row, so that eight lanes that read eight
// rows meet no bank twice.
template <typename W, int kMatrices, int kSixteens, bool kWgmma>
class GroupedTile {
  using T = typename W::Type;
  static constexpr int kBits = W::kBits, kGroup = W::kGroup;

 public:
  static constexpr int kOuts = kBlockRows / kMatrices;
  static constexpr int kSums = 8 * kSixteens;

  __device__ GroupedTile(const Grouped<T, kMatrices>& p, const Tile& tile, int out, char* shared)
      : p_(p), tile_(tile), out_(out), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
    int thread = threadIdx.x;
#pragma unroll
    for (int i = 0; i < kSixteens; i++) {
      // lines that are not there are the last one once more, which is not written
      uint32_t line = min(thread / 8 + 16 * i, tile.lines - 1);
      x_[i] = reinterpret_cast<const char*>(p.x + int64_t{p.line(tile.first + line).from} * p.K) + thread % 8 * 16;
    }
#pragma unroll
    for (int i = 0; i < kMatrices; i++) {
      w_[i] = p.weights[i].w + (int64_t{tile.expert} * p.N + out + thread / 4) * row_bytes() + thread % 4 * 16;
    }
    scales_ = shared + kScales + row_of_lane(0, 0) * scale_bytes();
    swizzle_ = scale_swizzle(lane_ / 4) * 16;
  }

  __device__ void run() {
    fetch_scales();
    for (int i = 0; i < kStages - 1; i++) {
      if (i < steps()) {
        fetch_x(i);
      }
      if (i < kCodePieces) {
        fetch_codes<0, 4>(i);
      }
      close_group_of_copies();
    }
    float sums[2][kSums];
#pragma unroll
    for (int i = 0; i < kSums; i++) {
      sums[0][i] = sums[1][i] = 0;
    }
    multiply(sums);
    wait_for_copies(0);
    __syncthreads();
    write(sums);
  }

 private:
  static constexpr int kXBytes = kTileLines * kStep * 2;
  static constexpr int kCodePieces = code_pieces(kBits);
  static constexpr int kPieceBytes = kBlockRows * kCodeBytes;
  static constexpr int kCodes = kStages * kXBytes;
  static constexpr int kScales = kCodes + kCodePieces * kPieceBytes;
  // Steps that a piece has codes for.
  static constexpr int kPieceSteps = 8 / kBits;
  static constexpr int kGroups = kGroup < kStep ? kStep / kGroup : 1;

  // Weights of a lane for a step, of both parts of the block's rows.
  using Weights = uint32_t[2][4][4];

  __device__ int steps() const {
    return p_.K / kStep;
  }
  __device__ int row_bytes() const {
    return p_.K / 8 * kBits;
  }
  // Scales of a row, and as many biases.
  __device__ int scale_bytes() const {
    return p_.K / kGroup * W::kScaleBytes;
  }

  __device__ char* x_of(int step) const {
    return shared_ + step % kStages * kXBytes;
  }
  __device__ char* codes_of(int piece) const {
    return shared_ + kCodes + piece % kCodePieces * kPieceBytes;
  }

  __device__ void fetch_x(int step) {
    int row = threadIdx.x / 8, piece = threadIdx.x % 8;
    char* to = x_of(step) + row * 128 + (piece ^ row % 8) * 16;
#pragma unroll
    for (int i = 0; i < kSixteens; i++) {
      copy_16_bytes(to + i * 16 * 128, x_[i] + step * 128);
    }
  }

  // Of each matrix: fewer than kOuts where N is no multiple of it.
  __device__ int rows() const {
    return min(kOuts, p_.N - out_);
  }

  // Of the block's rows, 32 at a time, the kFrom-th and on. What is left out of rows that are not there is multiplied all the
  // same, and not written.
  template <int kFrom, int kTo>
  __device__ void fetch_codes(int piece) {
    int row = threadIdx.x / 4, place = threadIdx.x % 4;
    char* to = codes_of(piece) + row * kCodeBytes + (place ^ row / 2 % 4) * 16;
    if (piece * kCodeBytes + place * 16 < row_bytes()) {
#pragma unroll
      for (int i = kFrom; i < kTo; i++) {
        int matrix = 32 * i / kOuts, first = 32 * i % kOuts;
        if (first + row < rows()) {
          copy_16_bytes_of_line(
              to + i * 32 * kCodeBytes, w_[matrix] + int64_t{first} * row_bytes() + piece * kCodeBytes);
        }
      }
    }
  }

  // Until this thread's copies for all but the last `open` steps have come, and those of the others.
  __device__ void arrive(int open) {
    wait_for_copies(open);
    if constexpr (kWgmma) {
      show_shared_to_wgmma();
    }
    __syncthreads();
  }

  // Asks for what takes the place of that which all threads are done with: x of the step before `step`, and codes of `step`
  // and before.
  __device__ void fetch_after(int step) {
    int next = step + kStages - 1;
    if (next < steps()) {
      fetch_x(next);
    }
    if constexpr (kPieceSteps == 1) {
      if (next < steps()) {
        fetch_codes<0, 4>(next);
      }
    } else if (step % 2 == 1) {
      fetch_codes<0, 2>(step / 2 + kCodePieces);
    } else if (step > 0) {
      fetch_codes<2, 4>(step / 2 - 1 + kCodePieces);
    }
    close_group_of_copies();
  }

  // Which of the pieces of 16 bytes of a row's scales lies in place of the first.
  __device__ int scale_swizzle(int row) const {
    int pieces = scale_bytes() / 16;
    if (scale_bytes() % 16 != 0 || (pieces & (pieces - 1)) != 0) {
      return 0;
    }
    return (pieces >= 8 ? row : row * pieces / 8) % 8 & (pieces - 1);
  }

  // Those of the block's rows lie one behind the other, kOuts of each matrix.
  __device__ void fetch_scales() {
    int bytes = scale_bytes(), pieces = rows() * bytes / 16;
#pragma unroll
    for (int matrix = 0; matrix < kMatrices; matrix++) {
      int64_t first = (int64_t{tile_.expert} * p_.N + out_) * bytes;
      auto* scales = p_.weights[matrix].scales + first;
      auto* biases = p_.weights[matrix].biases + first;
      char* to = shared_ + kScales + matrix * kOuts * bytes;
      for (int piece = threadIdx.x; piece < pieces; piece += kGroupedThreads) {
        int at = (piece ^ scale_swizzle(piece * 16 / bytes)) * 16;
        copy_16_bytes(to + at, scales + piece * 16);
        if constexpr (W::kHasBiases) {
          copy_16_bytes(to + kBlockRows * bytes + at, biases + piece * 16);
        }
      }
    }
  }

  // Of the 64 rows `part`, those of this lane: 16 * warp + lane / 4, and eight further.
  __device__ int row_of_lane(int part, int half) const {
    return 64 * part + 16 * warp_ + 8 * half + lane_ / 4;
  }

  // The weights of this lane in a step: of each 16 values two pairs, those that it has of an operand.
  __device__ void weights(int step, Weights& a) const {
    int t = lane_ % 4, place = step % kPieceSteps * 2;
    const char* codes = codes_of(step / kPieceSteps) + row_of_lane(0, 0) * kCodeBytes + t * kBits / 4;
    const char* scales = scales_ + ((step * kStep / kGroup * W::kScaleBytes) ^ swizzle_);
#pragma unroll
    for (int part = 0; part < 2; part++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int row = 64 * part + 8 * half;
        W groups[kGroups];
#pragma unroll
        for (int group = 0; group < kGroups; group++) {
          const char* of_row = scales + row * scale_bytes() + W::kScaleBytes * group;
          groups[group] = W(of_row, of_row + kBlockRows * scale_bytes());
        }
#pragma unroll
        for (int block = 0; block < 4; block++) {
          auto& weights = groups[block * kGroups / 4];
          // a place has 16 bytes: two blocks for 4 bits, one for 8
          int at = row * kCodeBytes + ((place + block * kBits / 8) ^ lane_ / 8) * 16 + block * 2 * kBits % 16;
          a[part][block][half] = weights(codes + at);
          a[part][block][2 + half] = weights(codes + at + kBits);
        }
      }
    }
  }

  // Weights of the next step are dequantized while tensor cores multiply those of this one.
  __device__ void multiply(float (&sums)[2][kSums]) {
    Weights even, odd;
    arrive(kStages - 2);
    weights(0, even);
    for (int step = 0; step < steps(); step += 2) {
      multiply(step, even, odd, sums);
      if (step + 1 < steps()) {
        multiply(step + 1, odd, even, sums);
      }
    }
  }

  __device__ void multiply(int step, const Weights& a, Weights& next, float (&sums)[2][kSums]) {
    if constexpr (kWgmma) {
      uint64_t rows = rows_in_shared(x_of(step));
      wgmma_begin();
#pragma unroll
      for (int block = 0; block < 4; block++) {
        wgmma(sums[0], a[0][block], rows + 2 * block, static_cast<const T*>(nullptr));
        wgmma(sums[1], a[1][block], rows + 2 * block, static_cast<const T*>(nullptr));
      }
      wgmma_commit();
    }
    arrive(kStages - 3);
    fetch_after(step);
    if constexpr (!kWgmma) {
      multiply_by_warps(step, a, sums);
    }
    // at the end those of the last step once more, for nothing
    weights(min(step + 1, steps() - 1), next);
    if constexpr (kWgmma) {
      wgmma_wait(sums);
    }
  }

  __device__ void multiply_by_warps(int step, const Weights& a, float (&sums)[2][kSums]) {
    int row = lane_ % 8;
    const char* x = x_of(step) + (lane_ / 16 * 8 + row) * 128;
#pragma unroll
    for (int block = 0; block < 4; block++) {
#pragma unroll
      for (int i = 0; i < kSixteens; i++) {
        uint32_t b[4];
        load_four_matrices(b, x + i * 16 * 128 + ((2 * block + lane_ / 8 % 2) ^ row) * 16);
#pragma unroll
        for (int part = 0; part < 2; part++) {
          auto* type = static_cast<const T*>(nullptr);
          mma(reinterpret_cast<float(&)[4]>(sums[part][8 * i]), a[part][block], b[0], b[1], type);
          mma(reinterpret_cast<float(&)[4]>(sums[part][8 * i + 4]), a[part][block], b[2], b[3], type);
        }
      }
    }
  }

  // What is added to the sums of a part of the block's rows, which are a matrix's own where there are two.
  __device__ T bias_of(int part, int half) const {
    int row = kMatrices == 2 ? row_of_lane(0, half) : row_of_lane(part, half);
    auto* bias = p_.weights[kMatrices == 2 ? part : 0].bias;
    return row < rows() ? bias[int64_t{tile_.expert} * p_.N + out_ + row] : T(0.0f);
  }

  // By way of shared memory, so that outputs of a line are written together.
  __device__ void write(const float (&sums)[2][kSums]) {
    constexpr int kStride = kOuts * 2 + 16;
    auto put = [&](int line, int out, T value) {
      *reinterpret_cast<T*>(shared_ + line * kStride + out * 2) = value;
    };
    bool biased = p_.weights[0].bias != nullptr;
    T biases[2][2];
    if (biased) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        biases[i / 2][i % 2] = bias_of(i / 2, i % 2);
      }
    }
#pragma unroll
    for (int i = 0; i < kSums; i++) {
      int line = i / 4 * 8 + lane_ % 4 * 2 + i % 2, half = i / 2 % 2;
      T first = Pairs<T>::round(sums[0][i]), second = Pairs<T>::round(sums[1][i]);
      if (biased) {
        first = __hadd_rn(first, biases[0][half]);
        second = __hadd_rn(second, biases[1][half]);
      }
      if constexpr (kMatrices == 2) {
        put(line, row_of_lane(0, half), p_.joined(first, second));
      } else {
        put(line, row_of_lane(0, half), first);
        put(line, row_of_lane(1, half), second);
      }
    }
    __syncthreads();
    constexpr int kAcross = kOuts / 8;
    int piece = threadIdx.x % kAcross;
    for (int line = threadIdx.x / kAcross; line < tile_.lines; line += kGroupedThreads / kAcross) {
      T* to = p_.y + int64_t{p_.line(tile_.first + line).to} * p_.N + out_;
      if (piece * 8 < rows()) {
        reinterpret_cast<uint4*>(to)[piece] = *reinterpret_cast<uint4*>(shared_ + line * kStride + piece * 16);
      }
    }
  }

  const Grouped<T, kMatrices>& p_;
  Tile tile_;
  int out_;
  char* shared_;
  int warp_, lane_;
  const char* x_[kSixteens];
  const char* w_[kMatrices];
  const char* scales_;
  int swizzle_;
};

// Which tiles are multiplied by a warpgroup, and not by its warps: those of this many times 16 lines and more.
inline constexpr int kWgmmaFrom = 3;

template <typename W, int kMatrices, int kSixteens, int kFrom>
using GroupedTileOf = GroupedTile<W, kMatrices, kSixteens, kHasWgmma && (kSixteens >= kFrom)>;

template <typename W, int kMatrices, int kFrom = kWgmmaFrom>
__global__ __launch_bounds__(kGroupedThreads, 3) void grouped_product(
    const __grid_constant__ Grouped<typename W::Type, kMatrices> p) {
  extern __shared__ __align__(1024) char stages[];
  wait_for_inputs();
  let_next_begin();
  int blocks = blocks_of(p.N, kMatrices);
  Tile tile = p.tile(blockIdx.x / blocks);
  int out = blockIdx.x % blocks * (kBlockRows / kMatrices);
  switch ((tile.lines + 15) / 16) {
    case 0:
      return;
    case 1:
      return GroupedTileOf<W, kMatrices, 1, kFrom>(p, tile, out, stages).run();
    case 2:
      return GroupedTileOf<W, kMatrices, 2, kFrom>(p, tile, out, stages).run();
    case 3:
      return GroupedTileOf<W, kMatrices, 3, kFrom>(p, tile, out, stages).run();
    default:
      return GroupedTileOf<W, kMatrices, 4, kFrom>(p, tile, out, stages).run();
  }
}

} // namespace zmlx::on_cuda
