// NEON kernels: the portable vectors of qmm_vector.h at 4 lanes.

#include <arm_neon.h>

#define ZMLX_LANES 4
#include "cpu/fast_vector.h"
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

ZMLX_INLINE_V Vec widen_f16(const uint16_t* p) {
  float16x4_t h;
  __builtin_memcpy(&h, p, sizeof(h));
  return (Vec)vcvt_f32_f16(h);
}

ZMLX_INLINE_V Vec widen_low(Words v) {
  return (Vec)vcvt_f32_f16(vget_low_f16((float16x8_t)v));
}

ZMLX_INLINE_V Vec widen_high(Words v) {
  return (Vec)vcvt_high_f32_f16((float16x8_t)v);
}

ZMLX_INLINE_V Bytes lookup(Bytes table, Bytes i) {
  return (Bytes)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)i);
}

ZMLX_INLINE_V Bytes interleave_low(Bytes a, Bytes b) {
  return (Bytes)vzip1q_u8((uint8x16_t)a, (uint8x16_t)b);
}

ZMLX_INLINE_V Bytes interleave_high(Bytes a, Bytes b) {
  return (Bytes)vzip2q_u8((uint8x16_t)a, (uint8x16_t)b);
}

ZMLX_INLINE_V Quad fold(Vec v) {
  return v;
}

ZMLX_INLINE_V void transpose(Quad (&r)[4]) {
  const float32x4x2_t even = vzipq_f32((float32x4_t)r[0], (float32x4_t)r[2]);
  const float32x4x2_t odd = vzipq_f32((float32x4_t)r[1], (float32x4_t)r[3]);
  const float32x4x2_t low = vzipq_f32(even.val[0], odd.val[0]);
  const float32x4x2_t high = vzipq_f32(even.val[1], odd.val[1]);
  r[0] = (Quad)low.val[0];
  r[1] = (Quad)low.val[1];
  r[2] = (Quad)high.val[0];
  r[3] = (Quad)high.val[1];
}

} // namespace

const Kernels* neon_kernels() {
  static const Kernels k{"neon", vector_kernel<true>, vector_fast};
  return &k;
}

} // namespace zmlx::cpu
