// Fast products of bf16 by the processor's bf16 dot product (AVX512_BF16).
//
// Idea:   integers of 2 or 4 bits and fp4 are exact in bf16, so vdpbf16ps multiplies them without loss and adds in f32,
//         two weights a lane at once. 64 bytes are 32 words of 16 bits; field j of every word is one shift and one word
//         permutation away from 32 weights.
// Layout: x as [field][32 words].
// Bound:  one row: memory; in cache 3 operations per 32 weights, where widening takes 6. More rows: 4 / 3 instructions a
//         cycle on Zen 5, each 32 multiply-adds, where a fused multiply-add does 2 of 16.
// Limits: bf16, bits 2 or 4. Widening to f32 is as fast for 8 bits, and faster for f16 and f32, which would be split
//         into two or three bf16 numbers. Values of x below 2^-126 count as zero: the instruction flushes denormals.

#include "cpu/fast_avx512.h"
#include "cpu/qmm_avx512.h"

namespace zmlx::cpu {

namespace {

ZMLX_INLINE uint16_t bf16_bits(float exact) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, exact) >> 16);
}

// 32 * n words, word F * i + j of the row, to n vectors: vector j holds words j, F + j, 2 F + j, ...
template <int n>
ZMLX_INLINE void deinterleave(__m512i* v) {
  if constexpr (n > 1) {
    alignas(64) static constexpr uint16_t kEven[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                       32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    const __m512i even = _mm512_load_si512(kEven);
    const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    __m512i e[n / 2], o[n / 2];
#pragma GCC unroll 4
    for (int i = 0; i < n / 2; i++) {
      e[i] = _mm512_permutex2var_epi16(v[2 * i], even, v[2 * i + 1]);
      o[i] = _mm512_permutex2var_epi16(v[2 * i], odd, v[2 * i + 1]);
    }
    deinterleave<n / 2>(e);
    deinterleave<n / 2>(o);
#pragma GCC unroll 4
    for (int i = 0; i < n / 2; i++) {
      v[2 * i] = e[i];
      v[2 * i + 1] = o[i];
    }
  }
}

template <DType D, Mode M, int B>
struct Dot {
  static_assert(D == DType::BF16 && B <= 4);
  static constexpr DType dtype = D;
  static constexpr Mode mode = M;
  static constexpr int bits = B;
  static constexpr int fields = 16 / bits; // weights in a word
  static constexpr int64_t x_bytes = fields * 64;
  static constexpr int tile = 8;

  __m512i table; // weights by the low 5 bits of a word, of which the field is the lowest

  ZMLX_INLINE Dot() {
    constexpr float fp4[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    alignas(64) uint16_t t[32];
    for (int i = 0; i < 32; i++) {
      const int field = i & ((1 << bits) - 1);
      t[i] = bf16_bits(mode == Mode::Affine ? static_cast<float>(field) : fp4[field]);
    }
    table = _mm512_load_si512(t);
  }

  // 64 bytes' share of x; `left` values of it exist.
  static ZMLX_INLINE void store_x(const uint8_t* in, int64_t left, uint8_t* out) {
    __m512i v[fields];
#pragma GCC unroll 8
    for (int j = 0; j < fields; j++) {
      const int64_t here = left - j * 32;
      const __mmask32 mask = here >= 32 ? 0xffffffff : here > 0 ? (1u << here) - 1 : 0;
      v[j] = _mm512_maskz_loadu_epi16(mask, in + j * 64);
    }
    deinterleave<fields>(v);
#pragma GCC unroll 8
    for (int j = 0; j < fields; j++) {
      _mm512_store_si512(out + j * 64, v[j]);
    }
  }

  struct Weights {
    __m512i field[fields];
  };

  ZMLX_INLINE Weights unpack(__m512i v) const {
    Weights w;
    repeat<fields>([&](auto j) ZMLX_LAMBDA {
      w.field[j] = _mm512_permutexvar_epi16(j ? _mm512_srli_epi16(v, j * bits) : v, table);
    });
    return w;
  }

  static ZMLX_INLINE __m512 multiply(const Weights& w, const uint8_t* x) {
    __m512 sum = _mm512_setzero_ps();
    repeat<fields>([&](auto j) ZMLX_LAMBDA {
      sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_load_si512(x + j * 64), (__m512bh)w.field[j]);
    });
    return sum;
  }
};

BlockKernel rows_of(const QuantView& q) {
  if (!q.transpose || q.dtype != DType::BF16 || q.bits > 4) {
    return nullptr;
  }
  switch (q.mode) {
    case Mode::Affine:
      return q.bits == 4 ? fast_rows<Dot<DType::BF16, Mode::Affine, 4>>
          : q.bits == 2  ? fast_rows<Dot<DType::BF16, Mode::Affine, 2>>
                         : nullptr;
    case Mode::Mxfp4:
      return fast_rows<Dot<DType::BF16, Mode::Mxfp4, 4>>;
    case Mode::Nvfp4:
      return fast_rows<Dot<DType::BF16, Mode::Nvfp4, 4>>;
    case Mode::Mxfp8:
      return nullptr;
  }
  return nullptr;
}

} // namespace

void fast_avx512_bf16(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  BlockKernel rows = rows_of(q);
  return (rows ? rows : fast_avx512)(q, n0, n1, m, xs, ys);
}

} // namespace zmlx::cpu
