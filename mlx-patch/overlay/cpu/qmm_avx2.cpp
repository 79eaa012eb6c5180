// AVX2 kernels: the portable vectors of qmm_vector.h at 8 lanes, F16C for f16.

#include <immintrin.h>

#define ZMLX_LANES 8
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

} // namespace

const Kernels* avx2_kernels() {
  static const Kernels k{"avx2", vector_kernel<true>, vector_kernel<false>};
  return &k;
}

} // namespace zmlx::cpu
