// The step kernels for AVX2 with FMA and F16C: 8 lanes.

#include <immintrin.h>

#include <cstdint>

namespace zmlx::cpu {
namespace {

struct V {
  using F = __m256;
  using M = __m256;
  using I = __m256i;
  static constexpr int W = 8;
  static constexpr int kTileRows = 4;

  static F load(const float* p) {
    return _mm256_loadu_ps(p);
  }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x);
  }
  static F set(float x) {
    return _mm256_set1_ps(x);
  }
  static F add(F a, F b) {
    return _mm256_add_ps(a, b);
  }
  static F sub(F a, F b) {
    return _mm256_sub_ps(a, b);
  }
  static F mul(F a, F b) {
    return _mm256_mul_ps(a, b);
  }
  static F div(F a, F b) {
    return _mm256_div_ps(a, b);
  }
  static F fma(F a, F b, F c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static F max(F a, F b) {
    return _mm256_max_ps(a, b);
  }
  static F floor(F x) {
    return _mm256_floor_ps(x);
  }
  static F abs(F x) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
  }
  static F neg(F x) {
    return _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
  }

  static M lt(F a, F b) {
    return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
  }
  static M gt(F a, F b) {
    return _mm256_cmp_ps(a, b, _CMP_GT_OQ);
  }
  static M ge(F a, F b) {
    return _mm256_cmp_ps(a, b, _CMP_GE_OQ);
  }
  static M unordered(F x) {
    return _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  }
  static M either(M a, M b) {
    return _mm256_or_ps(a, b);
  }
  static bool any(M m) {
    return _mm256_movemask_ps(m) != 0;
  }
  static F select(M m, F yes, F no) {
    return _mm256_blendv_ps(no, yes, m);
  }

  static F power_of_two(F x) {
    auto e = _mm256_add_epi32(_mm256_cvttps_epi32(x), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
  }
  static I even_octant(F x) {
    auto i = _mm256_add_epi32(_mm256_cvttps_epi32(x), _mm256_set1_epi32(1));
    return _mm256_and_si256(i, _mm256_set1_epi32(~1));
  }
  static F to_float(I x) {
    return _mm256_cvtepi32_ps(x);
  }
  static M has_bit(I x, int bit) {
    auto b = _mm256_set1_epi32(bit);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(x, b), b));
  }
  static I minus_two(I x) {
    return _mm256_sub_epi32(x, _mm256_set1_epi32(2));
  }

  // 32-bit lanes whose value fits 16 bits, to 8 u16
  static __m128i narrow(__m256i x) {
    auto packed = _mm256_packus_epi32(x, x);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }

  static F load_bf16(const uint16_t* p) {
    auto x = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
  }
  static __m256i bf16_bits(F x) {
    auto u = _mm256_castps_si256(x);
    auto odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    u = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    auto nan = _mm256_castps_si256(unordered(x));
    return _mm256_blendv_epi8(u, _mm256_set1_epi32(0x7fc00000), nan);
  }
  static F round_bf16(F x) {
    return _mm256_castsi256_ps(_mm256_and_si256(bf16_bits(x), _mm256_set1_epi32(0xffff0000)));
  }
  static void store_bf16(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(_mm256_srli_epi32(bf16_bits(x), 16)));
  }

  static void split_bf16(F pairs, F& even, F& odd) {
    auto x = _mm256_castps_si256(pairs);
    even = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff0000)));
  }

  static F load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static __m128i f16_bits(F x) {
    auto h = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    auto nan = _mm_or_si128(_mm_and_si128(h, _mm_set1_epi16(int16_t(0x8000))), _mm_set1_epi16(0x7d00));
    auto is_nan = narrow(_mm256_srli_epi32(_mm256_castps_si256(unordered(x)), 16));
    return _mm_blendv_epi8(h, nan, is_nan);
  }
  static F round_f16(F x) {
    return _mm256_cvtph_ps(f16_bits(x));
  }
  static void store_f16(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), f16_bits(x));
  }

  static void split_f16(F pairs, F& even, F& odd) {
    auto x = _mm256_castps_si256(pairs);
    even = _mm256_cvtph_ps(narrow(_mm256_and_si256(x, _mm256_set1_epi32(0xffff))));
    odd = _mm256_cvtph_ps(narrow(_mm256_srli_epi32(x, 16)));
  }

  static inline __attribute__((always_inline)) void transpose(F (&r)[8]) {
    F t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int j = 0; j < 2; j++) {
        r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
        r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
      }
    }
    for (int c = 0; c < 4; c++) {
      t[c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
      t[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
    }
    for (int i = 0; i < 8; i++) {
      r[i] = t[i];
    }
  }
};

} // namespace
} // namespace zmlx::cpu

#include "cpu/step_impl.h"

namespace zmlx::cpu {

const StepKernels* avx2_step_kernels() {
  static constexpr StepKernels k = make_kernels("avx2");
  return &k;
}

} // namespace zmlx::cpu
