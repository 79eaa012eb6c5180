// AVX2 kernels: the portable vectors of qmm_vector.h at 8 lanes, F16C for f16.

#include <immintrin.h>

#define ZMLX_LANES 8
#include "cpu/fast_vector.h"
#include "cpu/qmm_vector.h"

namespace zmlx::cpu {

namespace {

ZMLX_INLINE_V Vec round_f16(Vec v) {
  return (Vec)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}

ZMLX_INLINE_V Vec fused(Vec a, Vec b, Vec c) {
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

float f16_to_float(uint16_t bits) {
  return _cvtsh_ss(bits);
}

uint16_t float_to_f16(float v) {
  return _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
}

ZMLX_INLINE_V Vec widen_f16(const uint16_t* p) {
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

ZMLX_INLINE_V Vec widen_low(Words v) {
  return (Vec)_mm256_cvtph_ps(_mm256_castsi256_si128((__m256i)v));
}

ZMLX_INLINE_V Vec widen_high(Words v) {
  return (Vec)_mm256_cvtph_ps(_mm256_extracti128_si256((__m256i)v, 1));
}

ZMLX_INLINE_V Bytes lookup(Bytes table, Bytes i) {
  return (Bytes)_mm256_shuffle_epi8((__m256i)table, (__m256i)i);
}

ZMLX_INLINE_V Bytes interleave_low(Bytes a, Bytes b) {
  return (Bytes)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b);
}

ZMLX_INLINE_V Bytes interleave_high(Bytes a, Bytes b) {
  return (Bytes)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b);
}

ZMLX_INLINE_V Quad fold(Vec v) {
  return (Quad)_mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
}

ZMLX_INLINE_V void transpose(Quad (&r)[4]) {
  _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
}

} // namespace

const Kernels* avx2_kernels() {
  static const Kernels k{"avx2", vector_kernel<true>, vector_fast};
  return &k;
}

} // namespace zmlx::cpu
