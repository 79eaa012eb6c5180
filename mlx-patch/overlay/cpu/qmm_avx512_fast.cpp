// Fast products on AVX-512: f32 accumulation, order free.
//
// One row of x (decode), bits 2, 4 or 8:
//   Idea:   a lane is a slice of K. 64 bytes of one weight row are 16 dwords; field j of every dword is one shift and
//           one table permutation away from 16 f32 weights, which meet x reordered to [dword][field] beforehand. The
//           group's scale multiplies its partial sum, its bias the sum of its x. Four rows share the loads of x.
//   Bound:  memory: bits / 8 + 2 * sizeof(T) / group_size bytes a weight; in cache about 3 operations per 16 weights.
// Several rows of x, or bits 3, 5, 6: the blocked kernel of exact_avx512.h with fused multiply-adds.
// Limits:  transposed weights; for others see qmm_avx512_plain.cpp.

#include "cpu/exact_avx512.h"
#include "cpu/qmm_avx512.h"

namespace zmlx::cpu {

namespace {

ZMLX_INLINE __m512 round_bf16(__m512 v) {
  __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_mov_ps(RoundBF16Integer::one(v), nan, v);
}

template <DType D>
struct Fused : Steps<RoundF32> {
  static constexpr DType dtype = D;
  using Stored = float;
  static constexpr int kAffineOrder = 0, kFloatOrder = 0, kBiasOrder = 0;
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
  static ZMLX_INLINE Pair finish(Pair p) {
    if constexpr (D == DType::BF16) {
      return {round_bf16(p.a), round_bf16(p.b)};
    } else {
      return p;
    }
  }
};

// x[16 * i + j] for j = 0 .. fields - 1 to fields vectors: vector j holds x[fields * d + j] for d = 0 .. 15.
template <int fields>
ZMLX_INLINE void deinterleave(__m512* v) {
  if constexpr (fields > 1) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    __m512 e[fields / 2], o[fields / 2];
#pragma GCC unroll 8
    for (int i = 0; i < fields / 2; i++) {
      e[i] = _mm512_permutex2var_ps(v[2 * i], even, v[2 * i + 1]);
      o[i] = _mm512_permutex2var_ps(v[2 * i], odd, v[2 * i + 1]);
    }
    deinterleave<fields / 2>(e);
    deinterleave<fields / 2>(o);
#pragma GCC unroll 8
    for (int i = 0; i < fields / 2; i++) {
      v[2 * i] = e[i];
      v[2 * i + 1] = o[i];
    }
  }
}

template <DType D>
ZMLX_INLINE void store_one(void* y, int64_t i, float v) {
  store_values<D>(
      static_cast<uint8_t*>(y) + i * (D == DType::F32 ? 4 : 2),
      Fused<D>::finish({_mm512_set1_ps(v), _mm512_setzero_ps()}).a,
      1);
}

// `rows` outputs of one row of x.
//   x: [blocks][fields][16]; x_sums: one per group
template <DType D, Mode mode, int bits, int rows>
ZMLX_INLINE void gemv_rows(
    const QuantView& q,
    int64_t n,
    const float* x,
    const float* x_sums,
    const float* scale_table,
    const __m512i* scale_lanes, // lane -> group, for each block that 16 scales cover
    int blocks_per_scales,
    void* y) {
  constexpr int fields = 32 / bits;
  constexpr int item = mode != Mode::Affine ? 1 : D == DType::F32 ? 4 : 2;
  const int64_t row_bytes = q.K * bits / 8;
  const int64_t groups = q.K / q.group_size;
  const uint8_t* w[rows];
  const uint8_t* scales[rows];
  __m512 sum[rows];
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++) {
    w[r] = q.w + (n + r) * row_bytes;
    scales[r] = q.scales + (n + r) * groups * item;
    sum[r] = _mm512_setzero_ps();
  }
  Unpack<mode, bits> unpack;
  auto load_scales = [&](int r, int64_t g) {
    __mmask16 mask = groups - g >= 16 ? 0xffff : (1u << (groups - g)) - 1;
    if constexpr (mode == Mode::Affine) {
      return load_values<D>(scales[r] + g * item, mask);
    } else {
      __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, scales[r] + g));
      return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, scale_table, 4);
    }
  };
  const int64_t blocks = (row_bytes + 63) / 64;
  const int64_t prefetch = rows * row_bytes;
  const int groups_per_load = blocks_per_scales * 16 * fields / q.group_size;
  for (int64_t b0 = 0; b0 < blocks; b0 += blocks_per_scales) {
    __m512 scale16[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      scale16[r] = load_scales(r, b0 / blocks_per_scales * groups_per_load);
    }
    int64_t end = blocks - b0 < blocks_per_scales ? blocks : b0 + blocks_per_scales;
    for (int64_t b = b0; b < end; b++) {
      int64_t left = row_bytes - b * 64;
      __mmask16 mask = left >= 64 ? 0xffff : (1u << (left / 4)) - 1;
      __m512i v[rows];
      __m512 group_sum[rows];
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) {
        v[r] = _mm512_maskz_loadu_epi32(mask, w[r] + b * 64);
        _mm_prefetch(reinterpret_cast<const char*>(w[r] + b * 64 + prefetch), _MM_HINT_T0);
      }
      const float* xb = x + b * fields * 16;
#pragma GCC unroll 16
      for (int j = 0; j < fields; j++) {
        __m512 xj = _mm512_load_ps(xb + j * 16);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
          __m512 f;
          if constexpr (bits <= 4) {
            f = _mm512_permutexvar_ps(j ? _mm512_srli_epi32(v[r], bits * j) : v[r], unpack.low);
          } else if constexpr (mode == Mode::Affine) {
            f = _mm512_cvtepi32_ps(
                _mm512_and_si512(_mm512_srli_epi32(v[r], bits * j), _mm512_set1_epi32(255)));
          } else {
            __m512i t = _mm512_slli_epi32(v[r], 24 - bits * j);
            __m512i magnitude = _mm512_srli_epi32(_mm512_and_si512(t, _mm512_set1_epi32(0x7f000000)), 4);
            f = _mm512_mul_ps(as_float(magnitude), _mm512_set1_ps(0x1p120f));
            f = as_float(_mm512_ternarylogic_epi32(as_int(f), t, _mm512_set1_epi32(0x80000000), 0xf8));
          }
          group_sum[r] = j ? _mm512_fmadd_ps(xj, f, group_sum[r]) : _mm512_mul_ps(xj, f);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) {
        sum[r] = _mm512_fmadd_ps(
            _mm512_permutexvar_ps(scale_lanes[b - b0], scale16[r]), group_sum[r], sum[r]);
      }
    }
  }
  if constexpr (mode == Mode::Affine) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      const uint8_t* biases = q.biases + (n + r) * groups * item;
      for (int64_t g = 0; g < groups; g += 16) {
        __mmask16 mask = groups - g >= 16 ? 0xffff : (1u << (groups - g)) - 1;
        sum[r] = _mm512_fmadd_ps(
            load_values<D>(biases + g * item, mask), _mm512_maskz_loadu_ps(mask, x_sums + g), sum[r]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++) {
    store_one<D>(y, r, _mm512_reduce_add_ps(sum[r]));
  }
}

template <DType D, Mode mode, int bits>
void gemv(const QuantView& q, int64_t n0, int64_t n1, const void* x_row, void* y) {
  constexpr int fields = 32 / bits;
  constexpr int per_block = 16 * fields;
  constexpr int item = D == DType::F32 ? 4 : 2;
  const int64_t blocks = (q.K + per_block - 1) / per_block;
  const int64_t groups = q.K / q.group_size;
  auto x = static_cast<float*>(kernel_scratch((blocks * per_block + groups + 16) * 4));
  float* x_sums = x + blocks * per_block;
  auto row = static_cast<const uint8_t*>(x_row);
  for (int64_t k = 0; k < blocks * per_block; k += 16) {
    int64_t left = q.K - k;
    __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
    _mm512_store_ps(x + k, load_values<D>(row + k * item, mask));
  }
  if constexpr (mode == Mode::Affine) {
    for (int64_t g = 0; g < groups; g++) {
      __m512 s = _mm512_setzero_ps();
      for (int k = 0; k < q.group_size; k += 16) {
        s = _mm512_add_ps(s, _mm512_load_ps(x + g * q.group_size + k));
      }
      x_sums[g] = _mm512_reduce_add_ps(s);
    }
  }
  for (int64_t b = 0; b < blocks; b++) {
    __m512 v[fields];
#pragma GCC unroll 16
    for (int j = 0; j < fields; j++) {
      v[j] = _mm512_load_ps(x + b * per_block + j * 16);
    }
    deinterleave<fields>(v);
#pragma GCC unroll 16
    for (int j = 0; j < fields; j++) {
      _mm512_store_ps(x + b * per_block + j * 16, v[j]);
    }
  }
  const float* scale_table = nullptr;
  if constexpr (mode != Mode::Affine) {
    const auto& tables = float_tables();
    scale_table = mode == Mode::Nvfp4 ? tables.fp8 : D == DType::F16 ? tables.e8m0_f16 : tables.e8m0;
  }
  // 16 scales cover this many blocks of 64 bytes; lane d of block b belongs to group (b * 16 + d) * fields / group.
  const int blocks_per_scales = q.group_size * 16 / per_block;
  __m512i scale_lanes[32]; // as many as 8 bits and groups of 128 need
  for (int b = 0; b < blocks_per_scales; b++) {
    alignas(64) int32_t lane[16];
    for (int d = 0; d < 16; d++) {
      lane[d] = (b * 16 + d) * fields / q.group_size;
    }
    scale_lanes[b] = _mm512_load_si512(lane);
  }
  auto out = static_cast<uint8_t*>(y);
  int64_t n = n0;
  for (; n + 4 <= n1; n += 4) {
    gemv_rows<D, mode, bits, 4>(
        q, n, x, x_sums, scale_table, scale_lanes, blocks_per_scales, out + (n - n0) * item);
  }
  for (; n < n1; n++) {
    gemv_rows<D, mode, bits, 1>(
        q, n, x, x_sums, scale_table, scale_lanes, blocks_per_scales, out + (n - n0) * item);
  }
}

template <DType D>
void fast(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  using Gemv = void (*)(const QuantView&, int64_t, int64_t, const void*, void*);
  Gemv f = nullptr;
  if (m == 1) {
    switch (q.mode) {
      case Mode::Affine:
        f = q.bits == 4  ? gemv<D, Mode::Affine, 4>
            : q.bits == 2 ? gemv<D, Mode::Affine, 2>
            : q.bits == 8 ? gemv<D, Mode::Affine, 8>
                          : nullptr;
        break;
      case Mode::Mxfp4:
        f = gemv<D, Mode::Mxfp4, 4>;
        break;
      case Mode::Nvfp4:
        f = gemv<D, Mode::Nvfp4, 4>;
        break;
      case Mode::Mxfp8:
        f = gemv<D, Mode::Mxfp8, 8>;
        break;
    }
  }
  if (f) {
    return f(q, n0, n1, xs[0], ys[0]);
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
      return fast<DType::F32>(q, n0, n1, m, xs, ys);
    case DType::F16:
      return fast<DType::F16>(q, n0, n1, m, xs, ys);
    case DType::BF16:
      return fast<DType::BF16>(q, n0, n1, m, xs, ys);
  }
}

} // namespace zmlx::cpu
