// Rows of mxfp4 weights by a vector, a warp, with the bits of stock's `qmv` and `gather_qmv`
// (mlx/backend/cuda/quantized/qmm/qmv.cu), which on compute capability 9.0 run for fewer than eight rows of x: a weight is the
// product of its code and its scale in x's type; a lane takes 16 weights, half a group, in turn with the others and adds each
// to a sum of its own in x's type; then its sums in their order in float32, then those of the lanes.
//
// x lies in shared memory in the order in which weights come out of a word two by two: value i with value i + 4.

#pragma once

#include "cuda/qmv.cuh"

namespace zmlx::on_cuda {

inline constexpr int kMxfp4Group = 32;

// Values of x that a warp takes in one turn, and the bytes of shared memory for K of them.
inline constexpr int kMxfp4Turn = 512;

__host__ __device__ constexpr size_t mxfp4_bytes_of_x(int K) {
  return size_t(K + kMxfp4Turn - 1) / kMxfp4Turn * kMxfp4Turn * 2;
}

// A matrix [.., K], or a row of it.
struct Mxfp4 {
  const char* codes;
  const uint8_t* scales;

  __device__ Mxfp4 row(int64_t row, int K) const {
    return {codes + row * (K / 2), scales + row * (K / kMxfp4Group)};
  }
};

// What a type's numbers make of codes and scales. A code's bits, moved to where the type has its lowest exponents and its first
// bit after the point, are the code's value by a power of two.
template <typename T>
struct Mxfp4Of;

template <>
struct Mxfp4Of<__nv_bfloat16> {
  static constexpr int kShift = 6; // from the first code's bits; the value is the code's by 2^-126
  static constexpr uint32_t kBits = 0x01c001c0;
  // 2^(scale - 1), for scales up to 128.
  static __device__ uint32_t factor(uint32_t scale) {
    return (min(scale, 128u) + 126) << 7;
  }
  // 2^(scale - 128), or not a number.
  static __device__ uint32_t rest(uint32_t scale) {
    return scale == 255 ? 0x7fff : (scale - 1) << 7;
  }
};

template <>
struct Mxfp4Of<__half> {
  static constexpr int kShift = 9; // by 2^-14
  static constexpr uint32_t kBits = 0x0e000e00;
  // 2^(scale - 113); scales that float16 has no number for are zero.
  static __device__ uint32_t factor(uint32_t scale) {
    return scale < 103 ? 0 : (min(scale, 128u) - 98) << 10;
  }
  // 2^(scale - 128), or infinite with the scale, or not a number.
  static __device__ uint32_t rest(uint32_t scale) {
    return scale == 255 ? 0x7fff : scale >= 143 ? 0x7c00 : (scale - 113) << 10;
  }
};

// What a lane takes in one turn.
struct Mxfp4Piece {
  uint2 codes;
  uint32_t scale;
};

// The sums of a lane.
template <typename T>
class Mxfp4Sums {
  using Pair = typename Pairs<T>::Pair;
  using Of = Mxfp4Of<T>;

 public:
  __device__ Mxfp4Sums() {
#pragma unroll
    for (auto& sum : sums_) {
      sum = Pairs<T>::round2(0, 0);
    }
  }

  // `x`: of this lane in this turn.
  __device__ void add(const Mxfp4Piece& piece, const char* x) {
    Pair factor = both(Of::factor(piece.scale));
    Pair weights[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      uint32_t word = i < 4 ? piece.codes.x : piece.codes.y;
      uint32_t bits = (moved(word, Of::kShift - i % 4 * 4) & Of::kBits) | (moved(word, 12 - i % 4 * 4) & 0x80008000);
      weights[i] = times(as_pair<T>(bits), factor);
    }
    // a scale above 2
    if (piece.scale > 128) {
      Pair rest = both(Of::rest(piece.scale));
#pragma unroll
      for (auto& pair : weights) {
        pair = times(pair, rest);
      }
    }
#pragma unroll
    for (int word = 0; word < 2; word++) {
      uint4 values = *reinterpret_cast<const uint4*>(x + word * 512);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        Pair& sum = sums_[4 * word + i];
        sum = __hfma2(as_pair<T>(reinterpret_cast<const uint32_t*>(&values)[i]), weights[4 * word + i], sum);
      }
    }
  }

  __device__ float total() const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      Pair pair = sums_[i / 8 * 4 + i % 4];
      sum = __fadd_rn(sum, static_cast<float>(i / 4 % 2 ? pair.y : pair.x));
    }
    return sum;
  }

 private:
  static __device__ uint32_t moved(uint32_t word, int left) {
    return left >= 0 ? word << left : word >> -left;
  }
  static __device__ Pair both(uint32_t bits) {
    return as_pair<T>(bits | bits << 16);
  }
  static __device__ Pair times(Pair a, Pair b) {
    return __hmul2_rn(a, b);
  }

  Pair sums_[8];
};

// x [K] to where Mxfp4Sums::add finds it, by `threads` threads.
template <typename T>
__device__ void mxfp4_stage(char* shared, const T* x, int K, int thread, int threads) {
  for (int i = thread; i < K / 8; i += threads) {
    uint4 v = reinterpret_cast<const uint4*>(x)[i];
    int lane = i / 2 % 32, turn = i / 64;
    *reinterpret_cast<uint4*>(shared + turn * 1024 + i % 2 * 512 + lane * 16) = {
        __byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
        __byte_perm(v.y, v.w, 0x7632)};
  }
}

// `kRows` rows that are multiplied by one x at a time, with `kAhead` turns of them on their way.
template <typename T, int kRows, int kAhead>
class Mxfp4Rows {
 public:
  __device__ Mxfp4Rows(int K, int lane) : K_(K), lane_(lane) {}

  // Asks for the first pieces of `rows`, those that come next.
  __device__ void ask(const Mxfp4 (&rows)[kRows]) {
#pragma unroll
    for (int a = 0; a < kAhead; a++) {
      ask(a, rows, a * kMxfp4Turn);
    }
  }

  // The products with the staged x, in every lane, of rows whose first pieces were asked for; asks for those of `next`.
  __device__ void multiply(const Mxfp4 (&rows)[kRows], const Mxfp4 (&next)[kRows], const char* x, float (&products)[kRows]) {
    Mxfp4Sums<T> sums[kRows];
    for (int first = 0; first < K_; first += kAhead * kMxfp4Turn) {
      bool last = first + kAhead * kMxfp4Turn >= K_;
#pragma unroll
      for (int a = 0; a < kAhead; a++) {
        int turn = first + a * kMxfp4Turn;
        if (turn + lane_ * 16 < K_) {
#pragma unroll
          for (int row = 0; row < kRows; row++) {
            sums[row].add(pieces_[a][row], x + turn * 2 + lane_ * 16);
          }
        }
        last ? ask(a, next, a * kMxfp4Turn) : ask(a, rows, turn + kAhead * kMxfp4Turn);
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; row++) {
      products[row] = sum_over_warp(sums[row].total());
    }
  }

 private:
  __device__ void ask(int a, const Mxfp4 (&rows)[kRows], int turn) {
    int k = turn + lane_ * 16;
    if (k < K_) {
#pragma unroll
      for (int row = 0; row < kRows; row++) {
        if (rows[row].codes) {
          pieces_[a][row].codes = __ldcs(reinterpret_cast<const uint2*>(rows[row].codes + k / 2));
          pieces_[a][row].scale = rows[row].scales[k / kMxfp4Group];
        }
      }
    }
  }

  int K_;
  int lane_;
  Mxfp4Piece pieces_[kAhead][kRows];
};

} // namespace zmlx::on_cuda
