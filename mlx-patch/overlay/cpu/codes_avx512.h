// Packed codes as bf16 on AVX-512 with VBMI: included by translation units for it, never by baseline code.
//
// Idea:   integers of up to 8 bits, fp4 and e4m3 are exact in bf16. Where words of 16 bits hold several codes, field j of
//         every word is one shift and one word permutation away from 32 weights. Codes of 3, 5 or 6 bits are spread to a
//         byte each first; the two bytes of a byte's bf16 are one byte permutation each.

#pragma once

#include "cpu/fast_avx512.h"

namespace zmlx::cpu {

namespace {

ZMLX_INLINE uint16_t bf16_bits(float exact) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, exact) >> 16);
}

// The bf16 that a code of some bits stands for.
template <Mode mode>
uint16_t decode(int code) {
  const FloatTables& t = float_tables();
  return bf16_bits(mode == Mode::Affine ? static_cast<float>(code) : mode == Mode::Mxfp8 ? t.fp8[code] : t.fp4[code]);
}

// A lookup table, made once.
template <typename T>
struct Table {
  alignas(64) T data;

  template <typename F>
  explicit Table(F fill) {
    fill(data);
  }
};

// Codes of 2 or 4 bits.
template <Mode mode, int bits>
struct WordCodes {
  static constexpr int fields = 16 / bits; // codes in a word

  __m512i table; // bf16 by the low 5 bits of a word, of which the code is the lowest

  ZMLX_INLINE WordCodes() {
    static const Table<uint16_t[32]> t([](auto& t) {
      for (int i = 0; i < 32; i++) {
        t[i] = decode<mode>(i & ((1 << bits) - 1));
      }
    });
    table = _mm512_load_si512(t.data);
  }

  // Code j of every word.
  template <int j>
  ZMLX_INLINE __m512i field(__m512i v) const {
    return _mm512_permutexvar_epi16(j ? _mm512_srli_epi16(v, j * bits) : v, table);
  }
};

// Codes of 3, 5, 6 or 8 bits, as bytes.
template <Mode mode, int bits>
struct ByteCodes {
  __m512i spread; // 8 codes to each qword
  __m512i shifts; // and each to a byte
  __m512i low[2], high[2]; // of bf16, by the low 6 (of 8 bits: 7) bits of a byte, of which the code is the lowest

  ZMLX_INLINE ByteCodes() {
    static const Table<uint8_t[6][64]> t([](auto& t) {
      constexpr int codes = bits == 8 ? 128 : 1 << bits;
      for (int i = 0; i < 128; i++) {
        const uint16_t v = decode<mode>(i % codes);
        t[i / 64][i % 64] = v & 255;
        t[2 + i / 64][i % 64] = v >> 8;
      }
      for (int i = 0; i < 64; i++) {
        t[4][i] = i / 8 * bits + (i % 8 < bits ? i % 8 : 0);
        t[5][i] = i % 8 * bits;
      }
    });
    for (int i = 0; i < 2; i++) {
      low[i] = _mm512_load_si512(t.data[i]);
      high[i] = _mm512_load_si512(t.data[2 + i]);
    }
    spread = _mm512_load_si512(t.data[4]);
    shifts = _mm512_load_si512(t.data[5]);
  }

  // 64 codes, the next lying behind 8 * bits bytes, to a byte each; the bits above the code are of no account.
  ZMLX_INLINE __m512i bytes(__m512i v) const {
    return bits < 8 ? _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(spread, v)) : v;
  }

  struct Halves {
    __m512i low, high; // bytes of each bf16
  };

  ZMLX_INLINE Halves halves(__m512i v) const {
    if constexpr (bits < 8) {
      return {_mm512_permutexvar_epi8(v, low[0]), _mm512_permutexvar_epi8(v, high[0])};
    } else {
      const __m512i top = _mm512_set1_epi8(static_cast<char>(0x80));
      __m512i l = _mm512_permutex2var_epi8(low[0], v, low[1]);
      __m512i h = _mm512_permutex2var_epi8(high[0], v, high[1]);
      if constexpr (mode == Mode::Affine) { // from 128 on the bits of bf16 are 0x4300 + the low 7
        const __mmask64 large = _mm512_movepi8_mask(v);
        l = _mm512_mask_sub_epi8(l, large, v, top);
        h = _mm512_mask_mov_epi8(h, large, _mm512_set1_epi8(0x43));
      } else { // the sign
        h = _mm512_ternarylogic_epi32(h, v, top, 0xf8);
      }
      return {l, h};
    }
  }
};

} // namespace

} // namespace zmlx::cpu
