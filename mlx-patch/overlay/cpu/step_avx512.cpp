// The step kernels for AVX-512 (F, BW, DQ, VL): 16 lanes.

// GCC 12 takes the deliberately undefined operands of its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <immintrin.h>

#include <cstdint>

namespace zmlx::cpu {
namespace {

struct V {
  using F = __m512;
  using M = __mmask16;
  using I = __m512i;
  static constexpr int W = 16;
  static constexpr int kTileRows = 8;

  static F load(const float* p) {
    return _mm512_loadu_ps(p);
  }
  static void store(float* p, F x) {
    _mm512_storeu_ps(p, x);
  }
  static F set(float x) {
    return _mm512_set1_ps(x);
  }
  static F add(F a, F b) {
    return _mm512_add_ps(a, b);
  }
  static F sub(F a, F b) {
    return _mm512_sub_ps(a, b);
  }
  static F mul(F a, F b) {
    return _mm512_mul_ps(a, b);
  }
  static F div(F a, F b) {
    return _mm512_div_ps(a, b);
  }
  static F fma(F a, F b, F c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static F max(F a, F b) {
    return _mm512_max_ps(a, b);
  }
  static F floor(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static F abs(F x) {
    return _mm512_abs_ps(x);
  }
  static F neg(F x) {
    return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
  }

  static M lt(F a, F b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
  }
  static M gt(F a, F b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
  }
  static M ge(F a, F b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
  }
  static M unordered(F x) {
    return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  }
  static M either(M a, M b) {
    return a | b;
  }
  static bool any(M m) {
    return m != 0;
  }
  static F select(M m, F yes, F no) {
    return _mm512_mask_blend_ps(m, no, yes);
  }

  // 2^x for whole x in -127 .. 128
  static F power_of_two(F x) {
    auto e = _mm512_add_epi32(_mm512_cvttps_epi32(x), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
  }
  // (int(x) + 1) & ~1
  static I even_octant(F x) {
    auto i = _mm512_add_epi32(_mm512_cvttps_epi32(x), _mm512_set1_epi32(1));
    return _mm512_and_si512(i, _mm512_set1_epi32(~1));
  }
  static F to_float(I x) {
    return _mm512_cvtepi32_ps(x);
  }
  static M has_bit(I x, int bit) {
    return _mm512_test_epi32_mask(x, _mm512_set1_epi32(bit));
  }
  static I minus_two(I x) {
    return _mm512_sub_epi32(x, _mm512_set1_epi32(2));
  }

  static F load_bf16(const uint16_t* p) {
    auto x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  }
  // The upper halves hold the bf16, nearest even; every NaN becomes 0x7fc0.
  static __m512i bf16_bits(F x) {
    auto u = _mm512_castps_si512(x);
    auto odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    u = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_mov_epi32(u, unordered(x), _mm512_set1_epi32(0x7fc00000));
  }
  static F round_bf16(F x) {
    return _mm512_castsi512_ps(_mm512_and_si512(bf16_bits(x), _mm512_set1_epi32(0xffff0000)));
  }
  static void store_bf16(uint16_t* p, F x) {
    auto h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_bits(x), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), h);
  }

  static void split_bf16(F pairs, F& even, F& odd) {
    auto x = _mm512_castps_si512(pairs);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff0000)));
  }

  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // Every NaN becomes sign | 0x7d00.
  static __m256i f16_bits(F x) {
    auto h = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    auto nan = _mm256_or_si256(_mm256_and_si256(h, _mm256_set1_epi16(int16_t(0x8000))), _mm256_set1_epi16(0x7d00));
    return _mm256_mask_mov_epi16(h, unordered(x), nan);
  }
  static F round_f16(F x) {
    return _mm512_cvtph_ps(f16_bits(x));
  }
  static void store_f16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), f16_bits(x));
  }

  static void split_f16(F pairs, F& even, F& odd) {
    auto x = _mm512_castps_si512(pairs);
    even = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
    odd = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)));
  }

  static inline __attribute__((always_inline)) void transpose(F (&r)[16]) {
    F t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int j = 0; j < 2; j++) {
        auto a = _mm512_castps_pd(t[i + j]);
        auto b = _mm512_castps_pd(t[i + j + 2]);
        r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      }
    }
    // r[4g + c]: column c of each 128-bit lane, rows 4g .. 4g + 3
    for (int c = 0; c < 4; c++) {
      t[c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
      t[4 + c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
      t[8 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
      t[12 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    }
    for (int c = 0; c < 4; c++) {
      r[c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0x88);
      r[8 + c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0xdd);
      r[4 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0x88);
      r[12 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0xdd);
    }
  }
};

} // namespace
} // namespace zmlx::cpu

#include "cpu/step_impl.h"

namespace zmlx::cpu {

const StepKernels* avx512_step_kernels() {
  static constexpr StepKernels k = make_kernels("avx512");
  return &k;
}

} // namespace zmlx::cpu
