// AVX-512 kernels for weights that are not transposed: the portable vectors of qmm_vector.h at 16 lanes.

#include <immintrin.h>

#define ZMLX_LANES 16
#define ZMLX_ONLY_PLAIN
#include "cpu/qmm_avx512.h"
#include "cpu/qmm_vector.h"

namespace zmlx::cpu {

namespace {

ZMLX_INLINE_V Vec round_f16(Vec v) {
  return (Vec)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

ZMLX_INLINE_V Vec fused(Vec a, Vec b, Vec c) {
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

float f16_to_float(uint16_t bits) {
  return _cvtsh_ss(bits);
}

uint16_t float_to_f16(float v) {
  return _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
}

} // namespace

void plain_avx512(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys, bool exact) {
  (exact ? vector_kernel<true> : vector_kernel<false>)(q, n0, n1, m, xs, ys);
}

} // namespace zmlx::cpu
