// Fast products on AVX-512: f32 accumulation, order free.
//
// Few rows of x (decode), bits 2, 4 or 8: fast_avx512.h with the weights as f32; field j of every dword is one shift
//   and one table permutation away from 16 of them.
//   Bound: memory: bits / 8 + 2 * sizeof(T) / group_size bytes a weight; in cache 3 operations per 16 weights, and one
//   for every further row.
// Many rows, or bits 3, 5, 6: the blocked kernel of exact_avx512.h with fused multiply-adds.
// Limits:  transposed weights; for others see qmm_avx512_plain.cpp.

#include <type_traits>

#include "cpu/fast_avx512.h"
#include "cpu/qmm_avx512.h"

namespace zmlx::cpu {

namespace {

constexpr int kFewRows = 8; // from 16 on blocks are faster

struct FusedSteps : Steps<RoundF32> {
  using Math = FusedSteps;
  static ZMLX_INLINE Pair dequantize(Pair q, Pair scale, Pair bias) {
    return {_mm512_fmadd_ps(scale.a, q.a, bias.a), _mm512_fmadd_ps(scale.b, q.b, bias.b)};
  }
  static ZMLX_INLINE Pair multiply_add(Pair sum, __m512 x, Pair w) {
    return {_mm512_fmadd_ps(x, w.a, sum.a), _mm512_fmadd_ps(x, w.b, sum.b)};
  }
  static ZMLX_INLINE Pair scale_add(Pair sum, Pair scale, Pair group_sum) {
    return {
        _mm512_fmadd_ps(scale.a, group_sum.a, sum.a), _mm512_fmadd_ps(scale.b, group_sum.b, sum.b)};
  }
};

template <DType D>
struct Fused : FusedSteps {
  static constexpr DType dtype = D;
  static constexpr int kAffineOrder = 0, kFloatOrder = 0, kBiasOrder = 0;
  static ZMLX_INLINE Pair finish(Pair p) {
    if constexpr (D == DType::BF16) {
      return {round_bf16(p.a), round_bf16(p.b)};
    } else {
      return p;
    }
  }
};

// Every second value of a and b.
ZMLX_INLINE __m512 pick_values(__m512 a, __m512 b, int odd) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(odd)), b);
}

// Weights as f32: field j of every dword.
template <DType D, Mode M, int B>
struct Widen {
  static constexpr DType dtype = D;
  static constexpr Mode mode = M;
  static constexpr int bits = B;
  static constexpr int fields = 32 / bits;
  static constexpr int64_t x_bytes = fields * 64;
  static constexpr int tile = 4;
  using Product = std::conditional_t<mode == Mode::Affine, Widen, Widen<DType::F32, mode, bits>>;

  Unpack<mode, bits> table;

  // 64 bytes' share of x, as [field][dword]; `left` values of it exist.
  static ZMLX_INLINE void store_x(const uint8_t* in, int64_t left, uint8_t* out) {
    __m512 v[fields];
    repeat<fields>([&](auto j) ZMLX_LAMBDA {
      v[j] = load_values<D>(in + j * 16 * size_of(D), first_lanes(left - j * 16));
    });
    deinterleave<fields>(v, pick_values);
    repeat<fields>([&](auto j) ZMLX_LAMBDA { _mm512_store_ps(out + j * 64, v[j]); });
  }

  struct Weights {
    __m512 field[fields];
  };

  ZMLX_INLINE Weights unpack(__m512i v) const {
    Weights w;
    repeat<fields>([&](auto j) ZMLX_LAMBDA {
      if constexpr (bits <= 4) {
        w.field[j] = _mm512_permutexvar_ps(j ? _mm512_srli_epi32(v, bits * j) : v, table.low);
      } else if constexpr (mode == Mode::Affine) {
        w.field[j] = _mm512_cvtepi32_ps(
            _mm512_and_si512(_mm512_srli_epi32(v, bits * j), _mm512_set1_epi32(255)));
      } else {
        w.field[j] = e4m3(_mm512_slli_epi32(v, 24 - bits * j));
      }
    });
    return w;
  }

  static ZMLX_INLINE __m512 multiply(const Weights& w, const uint8_t* x) {
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    repeat<fields>([&](auto j) ZMLX_LAMBDA {
      sum[j % 2] = _mm512_fmadd_ps(_mm512_load_ps(x + j * 64), w.field[j], sum[j % 2]);
    });
    return _mm512_add_ps(sum[0], sum[1]);
  }
};

template <DType D>
BlockKernel rows_of(const QuantView& q) {
  switch (q.mode) {
    case Mode::Affine:
      return q.bits == 4 ? fast_rows<Widen<D, Mode::Affine, 4>>
          : q.bits == 2  ? fast_rows<Widen<D, Mode::Affine, 2>>
          : q.bits == 8  ? fast_rows<Widen<D, Mode::Affine, 8>>
                         : nullptr;
    case Mode::Mxfp4:
    case Mode::Nvfp4:
      return fast_rows<Widen<D, Mode::Mxfp4, 4>>;
    case Mode::Mxfp8:
      return fast_rows<Widen<D, Mode::Mxfp8, 8>>;
  }
  return nullptr;
}

template <DType D>
void fast_of(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  if (BlockKernel rows = m <= kFewRows ? rows_of<D>(q) : nullptr) {
    return rows(q, n0, n1, m, xs, ys);
  }
  exact_transposed<Fused<D>>(q, n0, n1, m, xs, ys, kernel_scratch);
}

} // namespace

void fast_avx512(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  if (!q.transpose) {
    return plain_avx512(q, n0, n1, m, xs, ys, false);
  }
  switch (q.dtype) {
    case DType::F32:
      return fast_of<DType::F32>(q, n0, n1, m, xs, ys);
    case DType::F16:
      return fast_of<DType::F16>(q, n0, n1, m, xs, ys);
    case DType::BF16:
      return fast_of<DType::BF16>(q, n0, n1, m, xs, ys);
  }
}

} // namespace zmlx::cpu
