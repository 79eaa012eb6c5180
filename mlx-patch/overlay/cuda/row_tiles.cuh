// Eight rows of quantized weights by a vector, a warp, with the bits of stock's `qmm_sm80` (cuda/mma.cuh), for weights that come
// by bulk copies.
//
// Rows come in pieces of 128 bytes, those of a block's rows together, and every piece has a barrier: the sums, which are one
// chain of products along K, follow what arrives. The copies swizzle: 16 bytes of a piece lie where their number, exclusive or
// the last three bits of the row's, says, so that what eight lanes read of eight rows meets no bank twice. With eight rows a
// warp and not 16 the schedulers of a multiprocessor have equal shares: what a step takes is instructions, not tensor cores.
//
// Lane 4 * g + t has of row g the values 4 * t to 4 * t + 3 of every 16; the vector has the same order.

#pragma once

#include "cuda/copies.cuh"
#include "cuda/mma.cuh"

namespace zmlx::on_cuda {

// Bytes of a row in a piece.
inline constexpr int kPieceBytes = 128;

// Bytes after which the pattern of a swizzle is the same again.
inline constexpr int kSwizzleBytes = 1024;

template <int kBits>
inline constexpr int kPieceValues = kPieceBytes * 8 / kBits;

// x [K] to where TiledProduct finds it, by `threads` threads: for two blocks of 16 values, 16 bytes for each of the four lanes
// of a row.
template <typename T, int kBits>
__device__ void stage_quads(char* shared, const T* x, int K, int thread, int threads) {
  auto* from = reinterpret_cast<const uint4*>(x);
  for (int i = thread; i < K / 8; i += threads) {
    uint4 v = from[i];
    auto* to = shared + i / 4 * 64 + i % 2 * 32 + i / 2 % 2 * 8;
    if constexpr (kBits == 4) {
      *reinterpret_cast<uint2*>(to) = {__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.x, v.y, 0x7632)};
      *reinterpret_cast<uint2*>(to + 16) = {__byte_perm(v.z, v.w, 0x5410), __byte_perm(v.z, v.w, 0x7632)};
    } else {
      *reinterpret_cast<uint2*>(to) = {v.x, v.y};
      *reinterpret_cast<uint2*>(to + 16) = {v.z, v.w};
    }
  }
}

// Eight rows by x; all threads of a warp.
template <typename T, int kBits, int kGroup>
class TiledProduct {
  using Pair = typename Pairs<T>::Pair;
  static constexpr int kGroups = kPieceValues<kBits> / kGroup;
  static constexpr int kUnitBlocks = 4; // of 16 values
  static constexpr int kUnits = kPieceValues<kBits> / (16 * kUnitBlocks);

 public:
  // `tile`: rows of a piece, of which the lane's is `row`. `scales`: of all pieces of this row; `x`: as staged.
  __device__ TiledProduct(const char* tile, int row, const T* scales, const T* biases, const char* x, int lane)
      : scales_(scales), biases_(biases), x_(shared_address(x) + lane % 4 * 16), lane_(lane) {
    uint32_t at = shared_address(tile) + row * kPieceBytes;
    row_ = (at ^ at / kPieceBytes % 8 * 16) + lane % 4 * (kBits / 2);
  }

  // In lane 4 * g the sum of row g. Pieces lie `stride` bytes apart; `wait(piece)` returns when that one is there.
  template <typename Wait>
  __device__ float multiply(int pieces, int stride, Wait wait) {
    Unit units[2];
    Scales now, next;
    wait(0);
    load(units[0], 0);
    load(now);
    for (int piece = 0; piece < pieces; piece++) {
#pragma unroll
      for (int unit = 0; unit < kUnits; unit++) {
        // what comes next is on its way while this is multiplied
        if (unit + 1 < kUnits) {
          load(units[(unit + 1) % 2], unit + 1);
        } else if (piece + 1 < pieces) {
          row_ += stride;
          scales_ += kGroups;
          biases_ += kGroups;
          x_ += kPieceValues<kBits> * 2;
          wait(piece + 1);
          load(units[0], 0);
          load(next);
        }
        add(units[unit % 2], now, unit);
      }
      now = next;
    }
    return sums_[0];
  }

 private:
  // What a lane has of four blocks.
  struct Unit {
    uint32_t codes[kUnitBlocks];
    uint4 x[kUnitBlocks / 2];
  };

  // Of a piece, two by two.
  struct Scales {
    static constexpr int kWords = kGroups > 1 ? kGroups / 2 : 1;
    uint32_t scales[kWords], biases[kWords];
  };

  __device__ void load(Unit& unit, int number) const {
#pragma unroll
    for (int i = 0; i < kUnitBlocks; i++) {
      int block = number * kUnitBlocks + i;
      if constexpr (kBits == 4) {
        uint16_t codes;
        asm volatile("ld.shared.u16 %0, [%1];" : "=h"(codes) : "r"((row_ ^ block / 2 * 16) + block % 2 * 8));
        unit.codes[i] = codes;
      } else {
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(unit.codes[i]) : "r"(row_ ^ block * 16));
      }
      if (i % 2 == 0) {
        // only column 0 of the product counts, whose lanes are the first four
        auto& x = unit.x[i / 2];
        asm volatile("{.reg .pred p; setp.lt.s32 p, %5, 4; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];}"
                     : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                     : "r"(x_ + block * 32), "r"(lane_));
      }
    }
  }

  __device__ void load(Scales& to) const {
    read(scales_, to.scales);
    read(biases_, to.biases);
  }

  static __device__ void read(const T* from, uint32_t (&words)[Scales::kWords]) {
    if constexpr (kGroups == 8) {
      *reinterpret_cast<uint4*>(words) = *reinterpret_cast<const uint4*>(from);
    } else if constexpr (kGroups == 4) {
      *reinterpret_cast<uint2*>(words) = *reinterpret_cast<const uint2*>(from);
    } else if constexpr (kGroups == 2) {
      words[0] = *reinterpret_cast<const uint32_t*>(from);
    } else {
      words[0] = *reinterpret_cast<const uint16_t*>(from);
    }
  }

  // Twice, without an instruction.
  static __device__ Pair of_group(const uint32_t (&words)[Scales::kWords], int group) {
    Pair two = as_pair<T>(words[group / 2]);
    return group % 2 ? Pairs<T>::high2(two) : Pairs<T>::low2(two);
  }

  __device__ void add(const Unit& unit, const Scales& of_piece, int number) {
#pragma unroll
    for (int i = 0; i < kUnitBlocks; i++) {
      int group = (number * kUnitBlocks + i) * 16 / kGroup;
      // of 4 bits two bytes, to where their halves are taken two by two
      uint32_t codes = kBits == 4 ? __byte_perm(unit.codes[i], 0, 0x4140) : unit.codes[i];
      Block<T, kBits> weights(codes, of_group(of_piece.scales, group), of_group(of_piece.biases, group));
      uint32_t unused; // rows 8 to 15
      asm("" : "=r"(unused));
      uint32_t rows[4] = {weights.first, unused, weights.second, unused};
      auto& x = unit.x[i / 2];
      mma(sums_, rows, i % 2 ? x.z : x.x, i % 2 ? x.w : x.y, static_cast<const T*>(nullptr));
    }
  }

  uint32_t row_;
  const T* scales_;
  const T* biases_;
  uint32_t x_;
  int lane_;
  float sums_[4] = {};
};

} // namespace zmlx::on_cuda
