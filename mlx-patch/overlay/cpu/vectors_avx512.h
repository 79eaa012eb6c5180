// Vectors of AVX-512, and values of every type in them: included by translation units for it, never by baseline code.

#pragma once

#include <immintrin.h>

#include "cpu/qmm.h"
#include "zmlx/mlx_version.h"

namespace zmlx::cpu {

namespace {

#define ZMLX_INLINE __attribute__((always_inline)) inline
#define ZMLX_LAMBDA __attribute__((always_inline))

struct Pair {
  __m512 a;
  __m512 b;
};

ZMLX_INLINE __m512 as_float(__m512i v) {
  return _mm512_castsi512_ps(v);
}
ZMLX_INLINE __m512i as_int(__m512 v) {
  return _mm512_castps_si512(v);
}

// The top byte of each dword as e4m3: exponent and mantissa are the top bits of an f32 with its exponent 120 too small.
ZMLX_INLINE __m512 e4m3(__m512i v) {
  __m512i magnitude = _mm512_srli_epi32(_mm512_and_si512(v, _mm512_set1_epi32(0x7f000000)), 4);
  __m512 f = _mm512_mul_ps(as_float(magnitude), _mm512_set1_ps(0x1p120f));
  if constexpr (linked::e4m3_has_nan) {
    __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x07f00000));
    f = as_float(_mm512_mask_mov_epi32(as_int(f), nan, _mm512_set1_epi32(0x7fc00000)));
  }
  return as_float(_mm512_ternarylogic_epi32(as_int(f), v, _mm512_set1_epi32(0x80000000), 0xf8));
}

// rows[i] becomes column i.
ZMLX_INLINE void transpose16(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[4 * i + 0] = _mm512_unpacklo_epi64(t[4 * i + 0], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i + 0], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// 16 values of type D as f32, `mask` of them read.
template <DType D>
ZMLX_INLINE __m512 load_values(const void* p, __mmask16 mask) {
  if constexpr (D == DType::F32) {
    return _mm512_maskz_loadu_ps(mask, p);
  } else {
    __m256i half = _mm256_maskz_loadu_epi16(mask, p);
    if constexpr (D == DType::F16) {
      return _mm512_cvtph_ps(half);
    } else {
      return as_float(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
  }
}

// 16 f32, already rounded to D, stored as D with stock's NaN.
template <DType D>
ZMLX_INLINE void store_values(void* p, __m512 v, __mmask16 mask) {
  if constexpr (D == DType::F32) {
    _mm512_mask_storeu_ps(p, mask, v);
  } else {
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    if constexpr (D == DType::F16) {
      __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      __m256i sign = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_and_si512(as_int(v), _mm512_set1_epi32(0x80000000)), 16));
      
      __m256i canonical = _mm256_or_si256(sign, _mm256_set1_epi16(0x7d00));
      half = _mm256_mask_mov_epi16(half, nan, canonical);
      _mm256_mask_storeu_epi16(p, mask, half);
    } else {
      __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(as_int(v), 16));
      half = _mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(0x7fc0));
      _mm256_mask_storeu_epi16(p, mask, half);
    }
  }
}

} // namespace

} // namespace zmlx::cpu
