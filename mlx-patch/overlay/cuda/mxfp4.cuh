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

// What a type's numbers make of codes and scales, twice in a word. A code's bits, moved to where the type has its lowest
// exponents and its first bit after the point, are the code's value by a power of two.
template <typename T>
struct Mxfp4Of;

template <>
struct Mxfp4Of<__nv_bfloat16> {
  static constexpr int kShift = 6; // from the first code's bits; the value is the code's by 2^-126
  static constexpr uint32_t kBits = 0x01c001c0;
  // 2^(scale - 1), for scales up to 128.
  static __device__ uint32_t factor(uint32_t scale) {
    return scale * 0x00800080 + 126 * 0x00800080;
  }
  // 2^(scale - 128), or not a number.
  static __device__ uint32_t rest(uint32_t scale) {
    return (scale == 255 ? 0x7fff : (scale - 1) << 7) * 0x00010001;
  }
};

template <>
struct Mxfp4Of<__half> {
  static constexpr int kShift = 9; // by 2^-14
  static constexpr uint32_t kBits = 0x0e000e00;
  // 2^(scale - 113); scales that float16 has no number for are zero.
  static __device__ uint32_t factor(uint32_t scale) {
    return scale < 103 ? 0 : (scale - 98) * 0x04000400;
  }
  // 2^(scale - 128), or infinite with the scale, or not a number.
  static __device__ uint32_t rest(uint32_t scale) {
    return (scale == 255 ? 0x7fff : scale >= 143 ? 0x7c00 : (scale - 113) << 10) * 0x00010001;
  }
};

// The largest scale whose factor a type has.
inline constexpr uint32_t kMxfp4Scale = 128;

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

  // `x`: of this lane in this turn. kAnyScale: the scale may be above kMxfp4Scale.
  template <bool kAnyScale>
  __device__ void add(const Mxfp4Piece& piece, const uint4 (&x)[2]) {
    bool above = kAnyScale && piece.scale > kMxfp4Scale;
    Pair factor = as_pair<T>(Of::factor(above ? kMxfp4Scale : piece.scale));
    Pair rest = as_pair<T>(above ? Of::rest(piece.scale) : 0);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      uint32_t word = i < 4 ? piece.codes.x : piece.codes.y;
      uint32_t bits = (moved(word, Of::kShift - i % 4 * 4) & Of::kBits) | (moved(word, 12 - i % 4 * 4) & 0x80008000);
      Pair weights = __hmul2_rn(as_pair<T>(bits), factor);
      if (above) {
        weights = __hmul2_rn(weights, rest);
      }
      sums_[i] = __hfma2(as_pair<T>(reinterpret_cast<const uint32_t*>(&x[i / 4])[i % 4]), weights, sums_[i]);
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

  Pair sums_[8];
};

// x [K] to where Mxfp4Rows::multiply finds it, by `threads` threads.
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

// `kRows` rows that are multiplied by one x at a time, with `kTurns` turns of them on their way. Instructions count as much as
// bytes here: what a lane reads in a run of turns lies at constant distances from one address, and scales above kMxfp4Scale,
// which no model has, are looked for once in a run.
template <typename T, int kRows, int kTurns>
class Mxfp4Rows {
 public:
  __device__ Mxfp4Rows(int K, int lane) : K_(K), lane_(lane) {
#pragma unroll
    for (auto& turn : pieces_) {
#pragma unroll
      for (auto& piece : turn) {
        piece = {};
      }
    }
  }

  // Asks for the first run of `rows`, which come next, or for nothing where there are none.
  __device__ void ask(const Mxfp4 (&rows)[kRows]) {
    begin(rows);
#pragma unroll
    for (int a = 0; a < kTurns; a++) {
      ask(a, rows[0].codes ? K_ : 0);
    }
  }

  // The products with the staged x, in every lane, of the rows that were asked for; asks for `next`.
  __device__ void multiply(const Mxfp4 (&next)[kRows], const char* x, float (&products)[kRows]) {
    Mxfp4Sums<T> sums[kRows];
    x += lane_ * 16;
    for (int left = K_; left > 0; left -= kRun) {
      int asked = left - kRun;
      if (asked > 0) {
#pragma unroll
        for (auto& row : at_) {
          row = {row.codes + kRun / 2, row.scales + kRun / kMxfp4Group};
        }
      } else {
        begin(next);
        asked = next[0].codes ? K_ : 0;
      }
      uint32_t most = 0;
#pragma unroll
      for (auto& turn : pieces_) {
#pragma unroll
        for (auto& piece : turn) {
          most = max(most, piece.scale);
        }
      }
      if (__any_sync(0xffffffff, most > kMxfp4Scale)) {
        run<true>(left, asked, x, sums);
      } else {
        run<false>(left, asked, x, sums);
      }
      x += kRun * 2;
    }
#pragma unroll
    for (int row = 0; row < kRows; row++) {
      products[row] = sum_over_warp(sums[row].total());
    }
  }

 private:
  static constexpr int kRun = kTurns * kMxfp4Turn;

  __device__ void begin(const Mxfp4 (&rows)[kRows]) {
#pragma unroll
    for (int row = 0; row < kRows; row++) {
      at_[row] = {rows[row].codes + lane_ * 8, rows[row].scales + lane_ / 2};
    }
  }

  // Turn `a` of where the rows are read, of which `left` values are left.
  __device__ void ask(int a, int left) {
    if (a * kMxfp4Turn + lane_ * 16 < left) {
#pragma unroll
      for (int row = 0; row < kRows; row++) {
        pieces_[a][row].codes = __ldcs(reinterpret_cast<const uint2*>(at_[row].codes + a * (kMxfp4Turn / 2)));
        pieces_[a][row].scale = at_[row].scales[a * (kMxfp4Turn / kMxfp4Group)];
      }
    }
  }

  template <bool kAnyScale>
  __device__ void run(int left, int asked, const char* x, Mxfp4Sums<T> (&sums)[kRows]) {
#pragma unroll
    for (int a = 0; a < kTurns; a++) {
      if (a * kMxfp4Turn + lane_ * 16 < left) {
        auto* values = x + a * (kMxfp4Turn * 2);
        uint4 of_x[2] = {*reinterpret_cast<const uint4*>(values), *reinterpret_cast<const uint4*>(values + 512)};
#pragma unroll
        for (int row = 0; row < kRows; row++) {
          sums[row].template add<kAnyScale>(pieces_[a][row], of_x);
        }
      }
      ask(a, asked);
    }
  }

  int K_;
  int lane_;
  Mxfp4 at_[kRows]; // of this lane, where the run begins that is asked for
  Mxfp4Piece pieces_[kTurns][kRows];
};

} // namespace zmlx::on_cuda
