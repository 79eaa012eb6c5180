// Sixteen rows of quantized weights by a vector, a warp, in `fast` precision: in no order of stock's, and with fewer roundings.
//
// Codes are whole numbers, and x is made some: each of its values is a fraction of a power of two that is above all values of its
// unit, a group of the weights or a part of one, in digits of 8 bits. mma.m16n8k32 multiplies 16 rows of codes by 8 columns
// of digits and adds without rounding, so that a group costs one product by its scale in float32, and one of its bias by
// the sum of x:
//
//   y = sum over units of  scale * 2^e * sum(code * digits) + bias * sum(x)
//
// Of 4 bits a word of codes is two words of an operand after three instructions, of 8 bits it is one as it is.
//
// Rows are taken by pieces of 128 bytes. Four lanes have half of one, a span, 16 bytes each. Where a span is several units, each has
// columns of its own, in which the digits of the others are zero. Four digits of 8 bits have every value that is not below the
// largest by 2^22, two (4 bits in groups of 32) those that are not by 2^6, and the rest to 2^-15 of the largest.

#pragma once

#include <algorithm>

#include "cuda/mma.cuh"

namespace zmlx::on_cuda::fast {

// Bytes of a row that a warp takes at once, and that four lanes have in one product after the other.
inline constexpr int kPieceBytes = 128, kSpanBytes = 64;

// Of x [K], whole pieces, in shared memory: digits of all spans; zeros; for every span and lane of a row what its sums count, and
// the sum of x.
template <int kBits, int kGroup>
struct Layout {
  static constexpr int kPiece = kPieceBytes * 8 / kBits, kSpan = kPiece / 2; // values
  static constexpr int kUnit = std::min(kGroup, kSpan);
  static constexpr int kUnits = kSpan / kUnit; // of a span
  static constexpr int kDigits = kUnits == 4 ? 2 : 4; // a byte each
  static constexpr int kProducts = kSpan / 32; // of tensor cores
  static constexpr int kDigitBytes = kSpan * kDigits; // of a span
  static constexpr int kPairBytes = kDigits * 4 * 16; // of two products

  static __host__ __device__ constexpr int zeros(int K) {
    return K * kDigits;
  }
  static __host__ __device__ constexpr int factors(int K) {
    return zeros(K) + kZeroBytes;
  }
  static __host__ __device__ constexpr int bytes(int K) {
    return factors(K) + K / kSpan * 4 * static_cast<int>(sizeof(float2));
  }
  // Where lanes without digits read, each other banks.
  static constexpr int kZeroBytes = 128;
};

__device__ inline float power_of_two(int exponent) {
  return __int_as_float((exponent + 127) << 23);
}

// Bytes `i` of four words, for every i.
__device__ inline void transpose_bytes(uint32_t (&words)[4]) {
  uint32_t low[2], high[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    low[i] = __byte_perm(words[2 * i], words[2 * i + 1], 0x5140);
    high[i] = __byte_perm(words[2 * i], words[2 * i + 1], 0x7362);
  }
  words[0] = __byte_perm(low[0], low[1], 0x5410);
  words[1] = __byte_perm(low[0], low[1], 0x7632);
  words[2] = __byte_perm(high[0], high[1], 0x5410);
  words[3] = __byte_perm(high[0], high[1], 0x7632);
}

// Eight values of x, number i of K / 8, to where Rows finds them. All lanes of a warp come, each with the next i, which may be
// behind x.
template <int kBits, int kGroup>
__device__ void stage_eight(char* shared, int K, int i, const float (&x)[8]) {
  using L = Layout<kBits, kGroup>;
  float most = 0, sum = 0;
#pragma unroll
  for (float v : x) {
    most = fmaxf(most, fabsf(v));
    sum += v;
  }
#pragma unroll
  for (int apart = L::kUnit / 16; apart > 0; apart /= 2) {
    most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, apart));
    sum += __shfl_xor_sync(0xffffffff, sum, apart);
  }
  // all are below 2^exponent; what is too small to be seen stays so
  int exponent = max(__float_as_int(most) >> 23, 40) - 126;
  constexpr int kPlaces = 8 * L::kDigits - 2;
  float to_whole = power_of_two(kPlaces - exponent);
  int span = i * 8 / L::kSpan, of_span = i % (L::kSpan / 8);
  if (i >= K / 8) {
    return;
  }
  // as Rows takes codes out of a word: of 4 bits every other one
  uint32_t digits[2][4];
#pragma unroll
  for (int n = 0; n < 8; n++) {
    constexpr uint32_t kHalves = L::kDigits == 4 ? 0x00808080 : 0x0080;
    uint32_t whole = __float2int_rn(x[n] * to_whole);
    uint32_t of_value = (whole + kHalves) ^ kHalves; // two's complement, each digit for itself
    (kBits == 4 ? digits[n % 2][n / 2] : digits[n / 4][n % 4]) = of_value;
  }
  transpose_bytes(digits[0]);
  transpose_bytes(digits[1]);
  constexpr int kOfLane = L::kSpan / 32; // of these eights
  int lane = of_span / kOfLane, product = of_span % kOfLane;
  char* to = shared + span * L::kDigitBytes + product / 2 * L::kPairBytes + lane * 16 + product % 2 * 8;
#pragma unroll
  for (int d = 0; d < L::kDigits; d++) {
    constexpr int kFirst = L::kDigits - 1;
    *reinterpret_cast<uint2*>(to + d * 64) = {digits[0][kFirst - d], digits[1][kFirst - d]};
  }
  // by one lane of the unit; two digits are in one lane's sums
  constexpr int kLanes = L::kDigits / 2;
  if (of_span % (L::kUnit / 8) == 0) {
    auto* factors = reinterpret_cast<float2*>(shared + L::factors(K)) + span * 4;
    int unit = of_span / (L::kUnit / 8);
#pragma unroll
    for (int n = 0; n < (L::kUnits == 1 ? 4 : kLanes); n++) {
      float counts = n < kLanes ? power_of_two(exponent - kPlaces + 8 * (L::kDigits - 1 - 2 * n)) : 0.0f;
      factors[unit * kLanes + n] = {counts, n == 0 ? sum : 0.0f};
    }
  }
  if (i < L::kZeroBytes / 16) {
    reinterpret_cast<uint4*>(shared + L::zeros(K))[i] = {};
  }
}

// x [K] by `threads` threads, whole warps. `meanwhile` is what a thread does until x comes.
template <typename T, int kBits, int kGroup, int kAtOnce = 1, typename Meanwhile>
__device__ void stage(char* shared, const T* x, int K, int thread, int threads, Meanwhile meanwhile) {
  for (int first = 0; first < K / 8; first += kAtOnce * threads) {
    uint4 raw[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; n++) {
      int i = first + n * threads + thread;
      raw[n] = i < K / 8 ? reinterpret_cast<const uint4*>(x)[i] : uint4{};
    }
    if (first == 0) {
      meanwhile();
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; n++) {
      if (first + n * threads < K / 8) {
        float values[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
          values[j] = static_cast<float>(reinterpret_cast<const T*>(&raw[n])[j]);
        }
        stage_eight<kBits, kGroup>(shared, K, first + n * threads + thread, values);
      }
    }
  }
}

// Where two rows come from: row lane / 4 of a tile, and another one.
template <typename T>
struct Source {
  const char* w[2];
  const T *scales[2], *biases[2];
};

// Sums of two rows in the lanes of a row.
template <typename T, int kBits, int kGroup>
class Rows {
  using L = Layout<kBits, kGroup>;
  static constexpr int kGroups = L::kPiece / kGroup; // of a piece, or 1
  static constexpr int kWords = kGroups > 1 ? kGroups / 2 : 1;

 public:
  // What a lane has of a piece: of two rows, and two spans of each, 16 bytes.
  struct Codes {
    uint4 of[2][2];
  };
  // Scales and biases of all groups of a piece, two by two.
  struct Scales {
    uint32_t scales[2][kWords], biases[2][kWords];
  };

  __device__ Rows(const char* x, int K, int lane) : lane_(lane) {
    int column = lane / 4, t = lane % 4, digit = column % L::kDigits;
    bool has_digits = t * L::kUnits / 4 == column / L::kDigits;
    x_ = (has_digits ? x : x + L::zeros(K) - digit / 2 * 128) + digit * 64 + t * 16;
    span_ = has_digits ? L::kDigitBytes : 0;
    pair_ = has_digits ? L::kPairBytes : 0;
    factors_ = reinterpret_cast<const float2*>(x + L::factors(K)) + t;
  }

  // From device memory; K a multiple of a piece.
  static __device__ void ask(Codes& codes, Scales& scales, const Source<T>& from, int piece, int lane) {
#pragma unroll
    for (int row = 0; row < 2; row++) {
#pragma unroll
      for (int span = 0; span < 2; span++) {
        auto* at = from.w[row] + piece * kPieceBytes + span * kSpanBytes + lane % 4 * 16;
        codes.of[row][span] = __ldcs(reinterpret_cast<const uint4*>(at));
      }
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
      read(scales.scales[row], from.scales[row] + piece * L::kPiece / kGroup);
      read(scales.biases[row], from.biases[row] + piece * L::kPiece / kGroup);
    }
  }

  // Words of a piece's scales or biases.
  static __device__ void read(uint32_t (&to)[kWords], const T* from) {
    if constexpr (kWords == 4) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else if constexpr (kWords == 2) {
      *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
    } else if constexpr (kGroups == 2) {
      to[0] = *reinterpret_cast<const uint32_t*>(from);
    } else {
      to[0] = *reinterpret_cast<const uint16_t*>(from);
    }
  }

  __device__ void add(int piece, const Codes& codes, const Scales& scales) {
    int sums[2][4];
    float2 factors[2];
#pragma unroll
    for (int span = 0; span < 2; span++) {
      factors[span] = factors_[(2 * piece + span) * 4];
#pragma unroll
      for (int& sum : sums[span]) {
        sum = kMagic;
      }
    }
#pragma unroll
    for (int pair = 0; pair < L::kProducts / 2; pair++) {
#pragma unroll
      for (int span = 0; span < 2; span++) {
        auto x = *reinterpret_cast<const uint4*>(x_ + (2 * piece + span) * span_ + pair * pair_);
        multiply(sums[span], codes.of[0][span], codes.of[1][span], 2 * pair, x.x, x.y);
        multiply(sums[span], codes.of[0][span], codes.of[1][span], 2 * pair + 1, x.z, x.w);
      }
    }
#pragma unroll
    for (int span = 0; span < 2; span++) {
#pragma unroll
      for (int row = 0; row < 2; row++) {
        auto number = [&](int i) { return __int_as_float(sums[span][2 * row + i]) - 12582912.0f; };
        float sum = __fmaf_rn(number(1), 1.0f / 256, number(0));
        totals_[row] = __fmaf_rn(of_span(scales.biases[row], span), factors[span].y, totals_[row]);
        totals_[row] = __fmaf_rn(of_span(scales.scales[row], span) * factors[span].x, sum, totals_[row]);
      }
    }
  }

  // In all lanes of a row its sum, which starts again.
  __device__ void take(float (&totals)[2]) {
#pragma unroll
    for (int row = 0; row < 2; row++) {
      float total = totals_[row];
      total += __shfl_xor_sync(0xffffffff, total, 1);
      totals[row] = total + __shfl_xor_sync(0xffffffff, total, 2);
      totals_[row] = 0;
    }
  }

 private:
  // As a float 1.5 * 2^23, whose last bits count ones: sums are below 2^22.
  static constexpr int kMagic = 0x4b400000;

  // Of the group of this lane in a span.
  __device__ float of_span(const uint32_t (&words)[kWords], int span) const {
    int t = lane_ % 4;
    uint32_t word = words[0];
    bool high = false;
    if constexpr (L::kUnits == 4) {
      word = t / 2 ? words[2 * span + 1] : words[2 * span];
      high = t % 2;
    } else if constexpr (L::kUnits == 2) {
      word = words[span];
      high = t / 2;
    } else {
      high = kGroups == 2 && span == 1;
    }
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return __uint_as_float(__byte_perm(word, 0, high ? 0x3244 : 0x1044));
    } else {
      auto both = as_pair<T>(word);
      return static_cast<float>(high ? both.y : both.x);
    }
  }

  static __device__ void multiply(
      int (&sums)[4], const uint4& first, const uint4& second, int product, uint32_t x0, uint32_t x1) {
    uint32_t a[4];
#pragma unroll
    for (int row = 0; row < 2; row++) {
      auto* words = reinterpret_cast<const uint32_t*>(row ? &second : &first);
      if constexpr (kBits == 4) {
        a[row] = words[product] & 0x0f0f0f0f;
        a[row + 2] = words[product] >> 4 & 0x0f0f0f0f;
      } else {
        a[row] = words[2 * product];
        a[row + 2] = words[2 * product + 1];
      }
    }
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(x0), "r"(x1));
  }

  const char* x_;
  int span_, pair_, lane_;
  const float2* factors_;
  float totals_[2] = {};
};

} // namespace zmlx::on_cuda::fast
