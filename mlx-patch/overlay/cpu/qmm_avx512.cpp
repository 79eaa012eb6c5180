// AVX-512 kernels: exact for f32, f16 and bf16 (integer rounding), and which of the exact kernels a call takes.
//
// NaN:    stock turns every NaN into one canonical value (bf16 0x7fc0, f16 sign | 0x7d00) after each operation; here a
//         NaN propagates and is made canonical when stored. A NaN in bf16 rounding keeps its upper half: it stems from
//         a bf16 input or from an invalid operation, so its lower half is zero and the rounding carry cannot reach the
//         exponent.
// See exact_avx512.h for idea, layout, bound and limits.

#include "cpu/exact_slices_avx512.h"
#include "cpu/qmm_avx512.h"

namespace zmlx::cpu {

namespace {

// An f16 NaN carries a sign, and which operand's sign survives an operation on two NaNs depends on the order in which the
// compiler put them. The scalar loop has stock's order: outputs that are NaN are computed again by it.
void repeat_nans(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  for (int i = 0; i < m; i++) {
    auto y = static_cast<uint16_t*>(ys[i]);
    for (int64_t n = n0; n < n1; n++) {
      if ((y[n - n0] & 0x7fff) > 0x7c00) {
        void* place = y + (n - n0);
        scalar_kernels()->exact(q, n, n + 1, 1, xs + i, &place);
      }
    }
  }
}

template <bool bf16_hardware>
void exact(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  if (!q.transpose) {
    return plain_avx512(q, n0, n1, m, xs, ys, true);
  }
  switch (q.dtype) {
    case DType::F32:
      return exact_transposed<InOrder<RoundF32>>(q, n0, n1, m, xs, ys, kernel_scratch);
    case DType::F16:
      exact_transposed<InOrder<RoundF16>>(q, n0, n1, m, xs, ys, kernel_scratch);
      return repeat_nans(q, n0, n1, m, xs, ys);
    case DType::BF16:
      if (bf16_hardware && exact_bf16_hardware(q, n0, n1, m, xs, ys, kernel_scratch)) {
        return;
      }
      return exact_transposed<InOrder<RoundBF16Integer>>(q, n0, n1, m, xs, ys, kernel_scratch);
  }
}

template <bool bf16_hardware>
void exact_slices(const Slice* slices, int count) {
  switch (slices[0].q.dtype) {
    case DType::F32:
      return exact_transposed_slices<InOrder<RoundF32>>(slices, count, kernel_scratch);
    case DType::F16:
      exact_transposed_slices<InOrder<RoundF16>>(slices, count, kernel_scratch);
      for (int i = 0; i < count; i++) {
        const Slice& s = slices[i];
        repeat_nans(s.q, s.n0, s.n1, 1, &s.x, &s.y);
      }
      return;
    case DType::BF16:
      if (bf16_hardware && exact_bf16_hardware_slices(slices, count, kernel_scratch)) {
        return;
      }
      return exact_transposed_slices<InOrder<RoundBF16Integer>>(slices, count, kernel_scratch);
  }
}

} // namespace

const Kernels* avx512_kernels() {
  static const Kernels k{"avx512", exact<false>, fast_avx512, true, exact_slices<false>};
  return &k;
}

const Kernels* avx512_bf16_kernels() {
  static const Kernels k{"avx512bf16", exact<true>, fast_avx512_bf16, true, exact_slices<true>};
  return &k;
}

const Kernels* amx_kernels() {
  static const Kernels k{"amx", exact<true>, fast_amx, true, exact_slices<true>};
  return &k;
}

} // namespace zmlx::cpu
