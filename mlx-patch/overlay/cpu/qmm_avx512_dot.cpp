// Fast products of bf16 by the processor's bf16 dot product (AVX512_BF16).
//
// Idea:   codes are exact in bf16 (cpu/codes_avx512.h), so vdpbf16ps multiplies them without loss and adds in f32, two
//         weights a lane at once.
// Layout: x as [field][32 words], in the order in which weights come out.
// Bound:  one row: memory; in cache 3 operations per 32 weights (4 in bytes), where widening takes 6. More rows: 4 / 3
//         instructions a cycle on Zen 5, each 32 multiply-adds, where a fused multiply-add does 2 of 16.
// Limits: bf16: f16 and f32, which would be split into two or three bf16 numbers, are faster widened. Values of x below
//         2^-126 count as zero: the instruction flushes denormals.

#include "cpu/codes_avx512.h"
#include "cpu/qmm_avx512.h"

namespace zmlx::cpu {

namespace {

// Every second word of a and b.
ZMLX_INLINE __m512i pick_words(__m512i a, __m512i b, int odd) {
  alignas(64) static constexpr uint16_t kEven[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                     32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  return _mm512_permutex2var_epi16(a, _mm512_add_epi16(_mm512_load_si512(kEven), _mm512_set1_epi16(odd)), b);
}

// 32 words, of which `left` exist.
ZMLX_INLINE __m512i load_words(const uint8_t* p, int64_t left) {
  return _mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffff : left > 0 ? (1u << left) - 1 : 0, p);
}

template <int fields>
ZMLX_INLINE __m512 dot(const __m512i (&weights)[fields], const uint8_t* x) {
  __m512 sum = _mm512_setzero_ps();
  repeat<fields>([&](auto j) ZMLX_LAMBDA {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_load_si512(x + j * 64), (__m512bh)weights[j]);
  });
  return sum;
}

template <Mode M, int B>
struct Dot {
  static constexpr DType dtype = DType::BF16;
  static constexpr Mode mode = M;
  static constexpr int bits = B;
  static constexpr int fields = 16 / bits; // weights in a word
  static constexpr int64_t x_bytes = fields * 64;
  static constexpr int tile = 8;
  using Product = Dot;

  WordCodes<M, B> codes;

  // A block's share of x; `left` values of it exist.
  static ZMLX_INLINE void store_x(const uint8_t* in, int64_t left, uint8_t* out) {
    __m512i v[fields];
    repeat<fields>([&](auto j) ZMLX_LAMBDA { v[j] = load_words(in + j * 64, left - j * 32); });
    deinterleave<fields>(v, pick_words);
    repeat<fields>([&](auto j) ZMLX_LAMBDA { _mm512_store_si512(out + j * 64, v[j]); });
  }

  struct Weights {
    __m512i field[fields];
  };

  ZMLX_INLINE Weights unpack(__m512i v) const {
    Weights w;
    repeat<fields>([&](auto j) ZMLX_LAMBDA {
      w.field[j] = codes.template field<j>(v);
    });
    return w;
  }

  static ZMLX_INLINE __m512 multiply(const Weights& w, const uint8_t* x) {
    return dot<fields>(w.field, x);
  }
};

// A block of 64 weights that come as bytes, or as integers of 3, 5 or 6 bits, 8 in each `bits` bytes.
template <Mode M, int B>
struct DotBytes {
  static constexpr DType dtype = DType::BF16;
  static constexpr Mode mode = M;
  static constexpr int bits = B;
  static constexpr int64_t x_bytes = 128;
  static constexpr int tile = 8;
  using Product = DotBytes;

  ByteCodes<M, B> codes;

  // Of every 16 values the first 8, then the last 8: as interleaving bytes leaves the weights.
  static ZMLX_INLINE void store_x(const uint8_t* in, int64_t left, uint8_t* out) {
    __m512i a = load_words(in, left), b = load_words(in + 64, left - 32);
    _mm512_store_si512(out, _mm512_shuffle_i64x2(a, b, 0x88));
    _mm512_store_si512(out + 64, _mm512_shuffle_i64x2(a, b, 0xdd));
  }

  struct Weights {
    __m512i field[2];
  };

  ZMLX_INLINE Weights unpack(__m512i v) const {
    const auto [low, high] = codes.halves(codes.bytes(v));
    return {{_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)}};
  }

  static ZMLX_INLINE __m512 multiply(const Weights& w, const uint8_t* x) {
    return dot<2>(w.field, x);
  }
};

BlockKernel rows_of(const QuantView& q) {
  if (!q.transpose || q.dtype != DType::BF16) {
    return nullptr;
  }
  switch (q.mode) {
    case Mode::Affine:
      return q.bits == 2 ? fast_rows<Dot<Mode::Affine, 2>>
          : q.bits == 3  ? fast_rows<DotBytes<Mode::Affine, 3>>
          : q.bits == 4  ? fast_rows<Dot<Mode::Affine, 4>>
          : q.bits == 5  ? fast_rows<DotBytes<Mode::Affine, 5>>
          : q.bits == 6  ? fast_rows<DotBytes<Mode::Affine, 6>>
          : q.bits == 8  ? fast_rows<DotBytes<Mode::Affine, 8>>
                         : nullptr;
    case Mode::Mxfp4:
    case Mode::Nvfp4:
      return fast_rows<Dot<Mode::Mxfp4, 4>>;
    case Mode::Mxfp8:
      return fast_rows<DotBytes<Mode::Mxfp8, 8>>;
  }
  return nullptr;
}

} // namespace

void fast_avx512_bf16(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  BlockKernel rows = rows_of(q);
  return (rows ? rows : fast_avx512)(q, n0, n1, m, xs, ys);
}

} // namespace zmlx::cpu
