// NEON kernels: the portable vectors of qmm_vector.h at 4 lanes.

#include <arm_neon.h>

#define ZMLX_LANES 4
#include "cpu/qmm_vector.h"

namespace zmlx::cpu {

namespace {

ZMLX_INLINE_V Vec round_f16(Vec v) {
  return (Vec)vcvt_f32_f16(vcvt_f16_f32((float32x4_t)v));
}

ZMLX_INLINE_V Vec fused(Vec a, Vec b, Vec c) {
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

float f16_to_float(uint16_t bits) {
  __fp16 h;
  __builtin_memcpy(&h, &bits, 2);
  return h;
}

uint16_t float_to_f16(float v) {
  __fp16 h = v;
  uint16_t bits;
  __builtin_memcpy(&bits, &h, 2);
  return bits;
}

} // namespace

const Kernels* neon_kernels() {
  static const Kernels k{"neon", vector_kernel<true>, vector_kernel<false>};
  return &k;
}

} // namespace zmlx::cpu
