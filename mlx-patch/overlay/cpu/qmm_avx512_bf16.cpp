// Exact bf16 products with the processor's own bf16 conversion (AVX512_BF16).
//
// Idea:   vcvtne2ps2bf16 rounds two vectors at once, to nearest even, exactly as stock does, except that it flushes
//         denormals. `in_range` proves beforehand, from the smallest and largest exponents of x, scales and biases, that
//         no intermediate value can be one, nor infinite; otherwise the caller takes the integer rounding.
// Layout: rounding a pair (A, B) gives 32 words, A's lanes then B's. Getting A and B back as f32 takes two word
//         permutations; taking even words (shift) and odd words (and) is cheaper but interleaves the lanes. Where the
//         next step does not care, the lanes stay interleaved: bias, weight and sum each have their fixed order.
//         vdpbf16ps with the constants one and zero adds every other word as it is, of which one vector rounds once.

#include "cpu/exact_slices_avx512.h"
#include "cpu/qmm_avx512.h"

namespace zmlx::cpu {

namespace {

struct RoundBF16Hardware {
  static constexpr DType dtype = DType::BF16;
  using Stored = uint16_t; // one weight in scratch
  using Storing = RoundBF16Hardware;
  using Math = RoundBF16Hardware;
  static constexpr int kBiasOrder = 1, kAffineOrder = 3, kFloatOrder = 2;

  static ZMLX_INLINE __m512i pack(Pair p) {
    return (__m512i)_mm512_cvtne2ps_pbh(p.b, p.a); // words of a, then of b
  }
  // Adds one to the order.
  static ZMLX_INLINE Pair interleaved(__m512i words) {
    return {
        as_float(_mm512_slli_epi32(words, 16)),
        as_float(_mm512_and_si512(words, _mm512_set1_epi32(0xffff0000)))};
  }
  static ZMLX_INLINE Pair in_order(__m512i words) {
    alignas(64) static constexpr uint16_t kLow[32] = {0, 0,  0, 1,  0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                      0, 8,  0, 9,  0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
    alignas(64) static constexpr uint16_t kHigh[32] = {0, 16, 0, 17, 0, 18, 0, 19, 0, 20, 0, 21, 0, 22, 0, 23,
                                                       0, 24, 0, 25, 0, 26, 0, 27, 0, 28, 0, 29, 0, 30, 0, 31};
    return {
        as_float(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_load_si512(kLow), words)),
        as_float(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_load_si512(kHigh), words))};
  }

  static ZMLX_INLINE Pair dequantize(Pair q, Pair scale, Pair bias) { // order 0 -> 1, rounded when stored
    Pair scaled = interleaved(pack({_mm512_mul_ps(scale.a, q.a), _mm512_mul_ps(scale.b, q.b)}));
    return {_mm512_add_ps(scaled.a, bias.a), _mm512_add_ps(scaled.b, bias.b)};
  }
  static ZMLX_INLINE void store_weight(Stored* w, Pair p) {
    _mm512_store_si512(w, pack(p));
  }
  static ZMLX_INLINE Pair load_weight(const Stored* w) { // affine: order 1 -> 2, float modes: 0 -> 1
    return interleaved(_mm512_load_si512(w));
  }
  static ZMLX_INLINE Pair multiply_add(Pair sum, __m512 x, Pair w) { // the product takes one more
    Pair product = interleaved(pack({_mm512_mul_ps(x, w.a), _mm512_mul_ps(x, w.b)}));
    return in_order(pack({_mm512_add_ps(sum.a, product.a), _mm512_add_ps(sum.b, product.b)}));
  }
  // The same for many sums at once: a word of each two times one and the other times zero, added to the sum, is longer
  // under way than the unpacked word, but takes no unpacking. Zero times a finite number; a sum is never -0.
  static ZMLX_INLINE Pair multiply_add_many(Pair sum, __m512 x, Pair w) {
    auto product = (__m512bh)pack({_mm512_mul_ps(x, w.a), _mm512_mul_ps(x, w.b)});
    auto even = (__m512bh)_mm512_set1_epi32(0x00003f80), odd = (__m512bh)_mm512_set1_epi32(0x3f800000);
    return in_order(pack({_mm512_dpbf16_ps(sum.a, product, even), _mm512_dpbf16_ps(sum.b, product, odd)}));
  }
  static ZMLX_INLINE Pair scale_add(Pair sum, Pair scale, Pair group_sum) {
    Pair product =
        in_order(pack({_mm512_mul_ps(scale.a, group_sum.a), _mm512_mul_ps(scale.b, group_sum.b)}));
    return in_order(pack({_mm512_add_ps(sum.a, product.a), _mm512_add_ps(sum.b, product.b)}));
  }
  static ZMLX_INLINE Pair finish(Pair p) {
    return p;
  }
  static ZMLX_INLINE Pair permute(Pair p, int order) {
    __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    for (; order > 0; order--) {
      p = {_mm512_permutex2var_ps(p.a, even, p.b), _mm512_permutex2var_ps(p.a, odd, p.b)};
    }
    return p;
  }
  static ZMLX_INLINE Pair unpermute(Pair p, int order) {
    for (; order > 0; order--) {
      __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      p = {_mm512_permutex2var_ps(p.a, first, p.b), _mm512_permutex2var_ps(p.a, second, p.b)};
    }
    return p;
  }
};

// The magnitudes of bf16 values.
class Magnitudes {
 public:
  ZMLX_INLINE void add(const void* p, int64_t n) {
    auto v = static_cast<const uint16_t*>(p);
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    const __m512i one = _mm512_set1_epi16(1);
    for (int64_t i = 0; i < n; i += 32) {
      __mmask32 mask = n - i >= 32 ? 0xffffffff : (1u << (n - i)) - 1;
      __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi16(mask, v + i), magnitude);
      least_ = _mm512_min_epu16(least_, _mm512_sub_epi16(bits, one)); // zero wraps to the largest
      most_ = _mm512_max_epu16(most_, bits);
    }
  }

  // Rows n0 .. n1 of n values.
  void add_rows(const uint8_t* p, int64_t stride, int64_t n0, int64_t n1, int64_t n) {
    if (stride == n * 2) {
      return add(p + n0 * stride, (n1 - n0) * n);
    }
    for (int64_t row = n0; row < n1; row++) {
      add(p + row * stride, n);
    }
  }

  // The exponent field, at least 1, of the smallest that is not zero: a value with it is a multiple of 2^(field - 127 - 7).
  int least_exponent() const {
    int e = (least_of(least_) + 1) >> 7;
    return e > 0 ? e : 1;
  }
  int most_exponent() const {
    return (0xffff - least_of(_mm512_xor_si512(most_, _mm512_set1_epi16(-1)))) >> 7;
  }

 private:
  static ZMLX_INLINE int least_of(__m512i v) {
    __m256i half = _mm256_min_epu16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    __m128i quarter = _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(quarter)) & 0xffff;
  }

  __m512i least_ = _mm512_set1_epi16(-1);
  __m512i most_ = _mm512_setzero_si512();
};

// Whether no intermediate is a denormal or infinite.
//   denormal: every one is a multiple of the product of the units of x and of the dequantized weight; none is, if that
//             product is at least 2^-126.
//   infinite: a sum is below 2^10 products, for it no longer grows by what is less than half its unit. With |x|, |scale|
//             and |bias| below 2^49 none comes near 2^128.
bool in_range(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs) {
  constexpr int kMost = 127 + 48;
  Magnitudes x;
  for (int i = 0; i < m; i++) {
    x.add(xs[i], q.K);
  }
  int ex = x.least_exponent();
  if (x.most_exponent() > kMost) {
    return false;
  }
  int64_t groups = q.K / q.group_size;
  if (q.mode == Mode::Affine) {
    Magnitudes w;
    w.add_rows(q.scales, q.scale_stride, n0, n1, groups);
    w.add_rows(q.biases, q.bias_stride, n0, n1, groups);
    int ew = w.least_exponent();
    // w: a multiple of 2^(ew - 134); x * w: of 2^(ex - 134 + ew - 134).
    return w.most_exponent() <= kMost && ew >= 8 && ex + ew >= 142;
  }
  // Weights are multiples of 2^-9, scales of 2^(e - 127) (nvfp4: of 2^-9).
  int es = 118;
  if (q.mode != Mode::Nvfp4) {
    es = 255;
    for (int64_t n = n0; n < n1; n++) {
      const uint8_t* scales = q.scales + n * q.scale_stride;
      for (int64_t g = 0; g < groups; g++) {
        es = scales[g] < es ? scales[g] : es;
      }
    }
  }
  return ex >= 17 && ex + es >= 145;
}

} // namespace

bool exact_bf16_hardware(
    const QuantView& q,
    int64_t n0,
    int64_t n1,
    int m,
    const void* const* xs,
    void* const* ys,
    void* (*scratch)(int64_t bytes)) {
  if (!in_range(q, n0, n1, m, xs)) {
    return false;
  }
  exact_transposed<RoundBF16Hardware>(q, n0, n1, m, xs, ys, scratch);
  return true;
}

bool exact_bf16_hardware_slices(const Slice* slices, int count, void* (*scratch)(int64_t bytes)) {
  for (int i = 0; i < count; i++) {
    const Slice& s = slices[i];
    if (!in_range(s.q, s.n0, s.n1, 1, &s.x)) {
      return false;
    }
  }
  exact_transposed_slices<RoundBF16Hardware>(slices, count, scratch);
  return true;
}

} // namespace zmlx::cpu
