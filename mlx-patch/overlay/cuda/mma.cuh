// Sixteen rows of quantized weights by a vector, a warp, with the bits of stock's `qmm_sm80`
// (mlx/backend/cuda/device/qmm_sm80.cuh; docs/adr/0014-stock-on-cuda.md says which of its choices show in the result):
// q * scale + bias in one rounding, blocks of 16 along K in ascending order through mma.m16n8k16 into float32.
//
// Bound by the bytes of the weights. Warps ask for all of their rows at once by cp.async and multiply a piece of K as soon
// as that has come, so that what is on its way fills the chip. Rows lie 16 bytes further apart in shared memory than
// they are long, so that eight lanes that read eight rows meet no bank twice. Every lane reads what four lanes of a row
// share and takes its own values out of it: which of the 16 values of a block a lane has is free as long as the vector has
// the same order (stage_vector).

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/tile.h"

namespace zmlx::on_cuda {

// Pairs of a 16-bit type. `kMagic` is a number whose last bits count ones.
template <typename T>
struct Pairs;

template <>
struct Pairs<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static constexpr uint32_t kMagic = 0x43004300; // 128
  static __device__ __nv_bfloat16 round(float v) {
    return __float2bfloat16_rn(v);
  }
  static __device__ Pair round2(float low, float high) {
    return __floats2bfloat162_rn(low, high);
  }
  static __device__ Pair low2(Pair pair) {
    return __low2bfloat162(pair);
  }
  static __device__ Pair high2(Pair pair) {
    return __high2bfloat162(pair);
  }
};

template <>
struct Pairs<__half> {
  using Pair = __half2;
  static constexpr uint32_t kMagic = 0x64006400; // 1024
  static __device__ __half round(float v) {
    return __float2half_rn(v);
  }
  static __device__ Pair round2(float low, float high) {
    return __floats2half2_rn(low, high);
  }
  static __device__ Pair low2(Pair pair) {
    return __low2half2(pair);
  }
  static __device__ Pair high2(Pair pair) {
    return __high2half2(pair);
  }
};

template <typename T>
__device__ inline typename Pairs<T>::Pair as_pair(uint32_t word) {
  return *reinterpret_cast<typename Pairs<T>::Pair*>(&word);
}

template <typename Pair>
__device__ inline uint32_t as_word(Pair pair) {
  return *reinterpret_cast<uint32_t*>(&pair);
}

// A scale or a bias, twice.
template <typename T>
__device__ inline typename Pairs<T>::Pair twice(const char* p) {
  T v = *reinterpret_cast<const T*>(p);
  typename Pairs<T>::Pair pair;
  pair.x = v;
  pair.y = v;
  return pair;
}

// The codes in the last bits of both halves, dequantized.
template <typename T, int kBits = 4>
__device__ inline uint32_t dequantized(uint32_t codes, typename Pairs<T>::Pair scale, typename Pairs<T>::Pair bias) {
  static_assert(kBits < 7, "the magic number of bfloat16 has no room for more");
  constexpr uint32_t magic = Pairs<T>::kMagic, mask = ((1u << kBits) - 1) * 0x00010001;
  uint32_t bits; // codes & mask | magic, which is compiled to two instructions
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(bits) : "r"(codes), "n"(mask), "n"(magic));
  return as_word(__hfma2(__hsub2(as_pair<T>(bits), as_pair<T>(magic)), scale, bias));
}

// The codes at `low` and the one behind it, in both halves of a word; other bits are those of their neighbours.
template <int kBits>
__device__ inline uint32_t two_codes(uint32_t codes, int low) {
  uint32_t from = codes >> (low * kBits);
  return __byte_perm(from, from >> kBits, 0x5410);
}

// The four of 16 weights that lane t of a row has, as the two words of an operand.
//   4 bits: 2t, 2t + 8 and 2t + 1, 2t + 9   other widths: 4t to 4t + 3
template <typename T, int kBits>
struct Block {
  uint32_t first, second;

  // `codes` has them in four bytes, those of 4 bits twice; of other widths one behind the other.
  __device__ Block(uint32_t codes, typename Pairs<T>::Pair scale, typename Pairs<T>::Pair bias) {
    if constexpr (kBits == 4) {
      first = dequantized<T>(codes, scale, bias);
      second = dequantized<T>(codes >> 4, scale, bias);
    } else if constexpr (kBits < 8) {
      first = dequantized<T, kBits>(two_codes<kBits>(codes, 0), scale, bias);
      second = dequantized<T, kBits>(two_codes<kBits>(codes, 2), scale, bias);
    } else {
      first = as_word(__hfma2(numbers(codes, 0, 1), scale, bias));
      second = as_word(__hfma2(numbers(codes, 2, 3), scale, bias));
    }
  }

 private:
  static __device__ typename Pairs<T>::Pair numbers(uint32_t codes, int low, int high) {
    auto number = [&](int byte) {
      return __uint_as_float(__byte_perm(codes, 0x4b000000, 0x7440 | byte)) - 8388608.0f;
    };
    return Pairs<T>::round2(number(low), number(high));
  }
};

__device__ inline void
mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const __nv_bfloat16*) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const __half*) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void copy_16_bytes(char* shared, const char* global) {
  uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

__device__ inline void close_group_of_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most `open` groups, or seven, are on their way.
__device__ inline void wait_for_copies(int open) {
  switch (open) {
    case 0:
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      break;
    case 1:
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      break;
    case 2:
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      break;
    case 3:
      asm volatile("cp.async.wait_group 3;" ::: "memory");
      break;
    case 4:
      asm volatile("cp.async.wait_group 4;" ::: "memory");
      break;
    case 5:
      asm volatile("cp.async.wait_group 5;" ::: "memory");
      break;
    case 6:
      asm volatile("cp.async.wait_group 6;" ::: "memory");
      break;
    default:
      asm volatile("cp.async.wait_group 7;" ::: "memory");
  }
}

// x [K] in the order in which Block takes weights, by `threads` threads: for two blocks of 16, 16 bytes for each of the
// four lanes of a row.
template <typename T, int kBits>
__device__ void stage_vector(char* shared, const T* x, int K, int thread, int threads) {
  auto* words = reinterpret_cast<const uint32_t*>(x);
  for (int i = thread; i < K / 4; i += threads) {
    int block = i / 4, t = i % 4;
    uint2 pair;
    if constexpr (kBits == 4) {
      uint32_t low = words[block * 8 + t], high = words[block * 8 + 4 + t];
      pair = {__byte_perm(low, high, 0x5410), __byte_perm(low, high, 0x7632)};
    } else {
      pair = {words[block * 8 + 2 * t], words[block * 8 + 2 * t + 1]};
    }
    *reinterpret_cast<uint2*>(shared + block / 2 * 64 + t * 16 + block % 2 * 8) = pair;
  }
}

// Eight rows of a matrix.
template <typename T>
struct EightRows {
  const char* w;
  const T* scales;
  const T* biases;
};

// Row `row` of expert `expert`, of N each, and what lies behind it; `matrices` begin with expert 0.
template <typename T, int kBits, int kGroup>
__device__ EightRows<T> rows_of(const EightRows<T>& matrices, int64_t expert, int row, int N, int K) {
  int64_t at = expert * N + row;
  return {matrices.w + at * (K / 8 * kBits), matrices.scales + at * (K / kGroup), matrices.biases + at * (K / kGroup)};
}

// All of it for K a multiple of 64 and of kGroup, and rows of a multiple of 16 bytes.
template <typename T, int kBits, int kGroup>
class SixteenRows {
 public:
  // Shared memory for the rows, 16-byte aligned.
  static __host__ __device__ size_t bytes(int K) {
    return 16 * (row_bytes(K) + 16) + 4 * 8 * scale_stride(K);
  }

  __device__ SixteenRows(char* shared, int K, int lane)
      : K_(K), lane_(lane), w_(shared), scales_(shared + 16 * (row_bytes(K) + 16)) {}

  // Asks for everything.
  __device__ void fetch(const EightRows<T> (&halves)[2]) {
    for (int half = 0; half < 2; half++) {
      fetch_scales(scales_ + (2 * half) * 8 * scale_stride(K_), halves[half].scales);
      fetch_scales(scales_ + (2 * half + 1) * 8 * scale_stride(K_), halves[half].biases);
    }
    close_group_of_copies();
    constexpr int kAcross = kPiece * kBits / 8 / 16; // copies of 16 bytes in a row
    constexpr int kDown = 32 / kAcross; // rows at once
    int column = lane_ % kAcross * 16;
    // of widths by which 32 cannot be divided some lanes, or rows of the last turn, have none
    constexpr bool kUneven = kAcross * kDown != 32 || 8 % kDown != 0;
    for (int from = 0; from < K_; from += kPiece) {
      int at = from / 8 * kBits + column;
      if (at < row_bytes(K_)) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          auto* from_half = halves[half].w + at;
          auto* to = w_ + 8 * half * (row_bytes(K_) + 16) + at;
#pragma unroll
          for (int i = 0; i < 8; i += kDown) {
            int row = i + lane_ / kAcross;
            if (kUneven && (row >= 8 || lane_ >= kAcross * kDown)) {
              continue;
            }
            copy_16_bytes(to + row * (row_bytes(K_) + 16), from_half + int64_t{row} * row_bytes(K_));
          }
        }
      }
      close_group_of_copies();
    }
  }

  // By the staged x: d[0] becomes the sum of row lane / 4, d[2] that of row lane / 4 + 8. `staged` makes the block wait until
  // x is there.
  template <typename Staged>
  __device__ void multiply(const char* x, float (&d)[4], Staged staged) {
    d[0] = d[1] = d[2] = d[3] = 0;
    int open = (K_ + kPiece - 1) / kPiece;
    for (int from = 0; from < K_; from += kPiece) {
      wait_for_copies(--open);
      if (from == 0) {
        staged();
      } else {
        __syncwarp();
      }
#pragma unroll
      for (int part = 0; part < kPiece; part += 64) {
        if (from + part < K_) {
          uint32_t a[4][4];
          uint4 b[2];
          load(x, from + part, a, b);
          auto* of_x = reinterpret_cast<const uint32_t*>(b);
#pragma unroll
          for (int block = 0; block < 4; block++) {
            mma(d, a[block], of_x[2 * block], of_x[2 * block + 1], static_cast<const T*>(nullptr));
          }
        }
      }
    }
  }

 private:
  // Values along K that are waited for at once.
  static constexpr int kPiece = 256;
  static constexpr int kGroups = kGroup < 64 ? 64 / kGroup : 1;

  static __host__ __device__ int row_bytes(int K) {
    return K / 8 * kBits;
  }

  // The scales of eight rows lie one behind the other; apart here where rows of them would meet in a bank.
  static __host__ __device__ int scale_stride(int K) {
    int bytes = K / kGroup * 2;
    return bytes % 16 == 0 ? bytes + 16 : bytes;
  }

  __device__ void fetch_scales(char* to, const T* from) {
    int groups = K_ / kGroup; // also pieces of 16 bytes in eight rows
    int gap = scale_stride(K_) - groups * 2;
    for (int piece = lane_; piece < groups; piece += 32) {
      int row = gap == 0 ? 0 : piece / (groups / 8);
      copy_16_bytes(to + piece * 16 + row * gap, reinterpret_cast<const char*>(from) + piece * 16);
    }
  }

  // The operands of this lane for four blocks from k on.
  __device__ void load(const char* x, int k, uint32_t (&a)[4][4], uint4 (&b)[2]) const {
    int g = lane_ / 4, t = lane_ % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      auto* row = w_ + (8 * half + g) * (row_bytes(K_) + 16) + k / 8 * kBits;
      uint32_t codes[4];
      if constexpr (kBits == 4) {
        uint4 words[2] = {reinterpret_cast<const uint4*>(row)[0], reinterpret_cast<const uint4*>(row)[1]};
#pragma unroll
        for (int block = 0; block < 4; block++) {
          auto* of_block = reinterpret_cast<const uint32_t*>(words) + 2 * block;
          codes[block] = __byte_perm(of_block[0], of_block[1], 0x4400 | t * 0x1111);
        }
      } else if constexpr (kBits == 8) {
#pragma unroll
        for (int block = 0; block < 4; block++) {
          codes[block] = reinterpret_cast<const uint32_t*>(row)[4 * block + t];
        }
      } else {
#pragma unroll
        for (int block = 0; block < 4; block++) {
          int bit = (16 * block + 4 * t) * kBits;
          auto* words = reinterpret_cast<const uint32_t*>(row) + bit / 32;
          // what lies behind the 64 values may not have come yet, and none of its bits are wanted
          bool last = bit / 32 == 2 * kBits - 1;
          codes[block] = __funnelshift_r(words[0], words[last ? 0 : 1], bit % 32);
        }
      }
      b[half] = *reinterpret_cast<const uint4*>(x + k * 2 + half * 64 + t * 16);
      typename Pairs<T>::Pair scale[kGroups], bias[kGroups];
#pragma unroll
      for (int group = 0; group < kGroups; group++) {
        auto* of_row = scales_ + (16 * half + g) * scale_stride(K_) + (k / kGroup + group) * 2;
        scale[group] = twice<T>(of_row);
        bias[group] = twice<T>(of_row + 8 * scale_stride(K_));
      }
#pragma unroll
      for (int block = 0; block < 4; block++) {
        int group = block * kGroups / 4;
        Block<T, kBits> weights(codes[block], scale[group], bias[group]);
        a[block][half] = weights.first;
        a[block][2 + half] = weights.second;
      }
    }
  }

  int K_;
  int lane_;
  char* w_;
  char* scales_;
};

} // namespace zmlx::on_cuda
