// One row of x times transposed weights on AVX-512 (decode), f32 accumulation in any order: included by one translation
// unit per way of multiplying, never by baseline code.
//
// Idea:    a lane is a slice of K. 64 bytes of one weight row are 16 dwords; a policy P multiplies them by the 64 bytes'
//          share of x into 16 partial sums, one per dword. The group's scale multiplies them, its bias the sum of its x.
// Layout:  P stores x once per call in the order in which it unpacks the weights.
// Memory:  rows are read one after the other, so that the addresses only ever rise, and prefetched at a fixed distance:
//          with pages of 4 KiB the processor's own prefetcher stops at every page. Four rows side by side reached two
//          thirds of the bandwidth.
// Limits:  bits 2, 4, 8; K a multiple of the group.

#pragma once

#include "cpu/exact_avx512.h"

namespace zmlx::cpu {

namespace {

constexpr int64_t kAhead = 4096; // bytes of weights between a prefetch and its use

// How many weights 64 bytes hold, and how one dword's share of them is called.
template <int bits>
struct Packing {
  static constexpr int per_dword = 32 / bits;
  static constexpr int per_block = 16 * per_dword;
};

ZMLX_INLINE __m512 round_bf16(__m512 v) {
  __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_mov_ps(RoundBF16Integer::one(v), nan, v);
}

ZMLX_INLINE __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0;
}

// The sums of four vectors.
ZMLX_INLINE __m128 reduce4(const __m512 v[4]) {
  auto half = [](__m512 a) { return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)); };
  __m256 a = _mm256_hadd_ps(half(v[0]), half(v[1]));
  __m256 b = _mm256_hadd_ps(half(v[2]), half(v[3]));
  __m256 c = _mm256_hadd_ps(a, b);
  return _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
}

// What does not change from row to row.
struct FastRow {
  const uint8_t* x; // as P stores it
  const float* x_sums; // one per group
  const float* scale_table; // modes whose scales are bytes
  __m512i scale_lanes[32]; // lane -> scale, for each block that 16 scales cover; 32 as 8 bits and groups of 128 need
};

template <DType D, Mode mode>
ZMLX_INLINE __m512 load_scales(const FastRow& f, const uint8_t* scales, int64_t g, int64_t groups) {
  __mmask16 mask = first_lanes(groups - g);
  if constexpr (mode == Mode::Affine) {
    return load_values<D>(scales + g * size_of(D), mask);
  } else {
    __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, scales + g));
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, f.scale_table, 4);
  }
}

// The product of weight row n with x, spread over 16 lanes.
template <typename P>
ZMLX_INLINE __m512 fast_row(const P& product, const QuantView& q, const FastRow& f, int64_t n) {
  constexpr DType D = P::dtype;
  constexpr int64_t item = P::mode == Mode::Affine ? size_of(D) : 1;
  const int64_t row_bytes = q.K * P::bits / 8;
  const int64_t groups = q.K / q.group_size;
  const int blocks_per_scales = q.group_size / Packing<P::bits>::per_dword;
  const uint8_t* w = q.w + n * row_bytes;
  const uint8_t* scales = q.scales + n * groups * item;
  const uint8_t* biases = P::mode == Mode::Affine ? q.biases + n * groups * item : nullptr;

  const int64_t later = (kAhead + row_bytes - 1) / row_bytes * groups * item;
  for (int64_t i = 0; i < groups * item; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(scales + later + i), _MM_HINT_NTA);
    if constexpr (P::mode == Mode::Affine) {
      _mm_prefetch(reinterpret_cast<const char*>(biases + later + i), _MM_HINT_NTA);
    }
  }
  __m512 sum = _mm512_setzero_ps();
  __m512 scale16 = _mm512_setzero_ps();
  const int64_t full = row_bytes / 64;
  int64_t g = 0;
  int in_scales = 0;
  auto block = [&](__m512i v, int64_t b) {
    if (in_scales == 0) {
      scale16 = load_scales<D, P::mode>(f, scales, g, groups);
      g += 16;
    }
    __m512 part = product.multiply(v, f.x + b * P::x_bytes);
    sum = _mm512_fmadd_ps(_mm512_permutexvar_ps(f.scale_lanes[in_scales], scale16), part, sum);
    in_scales = in_scales + 1 == blocks_per_scales ? 0 : in_scales + 1;
  };
  for (int64_t b = 0; b < full; b++) {
    _mm_prefetch(reinterpret_cast<const char*>(w + b * 64 + kAhead), _MM_HINT_NTA);
    block(_mm512_loadu_si512(w + b * 64), b);
  }
  if (row_bytes % 64) {
    block(_mm512_maskz_loadu_epi32(first_lanes(row_bytes % 64 / 4), w + full * 64), full);
  }
  if constexpr (P::mode == Mode::Affine) {
    for (int64_t i = 0; i < groups; i += 16) {
      __mmask16 mask = first_lanes(groups - i);
      sum = _mm512_fmadd_ps(
          load_values<D>(biases + i * item, mask), _mm512_maskz_loadu_ps(mask, f.x_sums + i), sum);
    }
  }
  return sum;
}

template <typename P>
void fast_rows(const QuantView& q, int64_t n0, int64_t n1, const void* x_row, void* y) {
  constexpr DType D = P::dtype;
  constexpr int64_t item = size_of(D);
  constexpr int per_block = Packing<P::bits>::per_block;
  const int64_t blocks = (q.K + per_block - 1) / per_block;
  const int64_t groups = q.K / q.group_size;
  auto x = static_cast<uint8_t*>(kernel_scratch(blocks * P::x_bytes + groups * 4));
  auto x_sums = reinterpret_cast<float*>(x + blocks * P::x_bytes);
  auto in = static_cast<const uint8_t*>(x_row);
  for (int64_t b = 0; b < blocks; b++) {
    P::store_x(in + b * per_block * item, q.K - b * per_block, x + b * P::x_bytes);
  }
  FastRow f{x, x_sums, nullptr, {}};
  if constexpr (P::mode == Mode::Affine) {
    for (int64_t g = 0; g < groups; g++) {
      __m512 s = _mm512_setzero_ps();
      for (int k = 0; k < q.group_size; k += 16) {
        s = _mm512_add_ps(s, load_values<D>(in + (g * q.group_size + k) * item, 0xffff));
      }
      x_sums[g] = _mm512_reduce_add_ps(s);
    }
  } else {
    const auto& tables = float_tables();
    f.scale_table = P::mode == Mode::Nvfp4 ? tables.fp8 : D == DType::F16 ? tables.e8m0_f16 : tables.e8m0;
  }
  // Lane d of block b belongs to group (b * 16 + d) * per_dword / group_size.
  const int shift = __builtin_ctz(q.group_size / Packing<P::bits>::per_dword);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int b = 0; b < 1 << shift; b++) {
    f.scale_lanes[b] = _mm512_srli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(b * 16)), shift);
  }
  const P product;
  auto out = static_cast<uint8_t*>(y);
  for (int64_t n = n0; n < n1; n += 4) {
    __m512 sums[4] = {};
    const int count = n1 - n < 4 ? static_cast<int>(n1 - n) : 4;
    for (int r = 0; r < count; r++) {
      sums[r] = fast_row(product, q, f, n + r);
    }
    __m512 v = _mm512_zextps128_ps512(reduce4(sums));
    if constexpr (D == DType::BF16) {
      v = round_bf16(v);
    }
    store_values<D>(out + (n - n0) * item, v, first_lanes(count));
  }
}

using FastRows = void (*)(const QuantView& q, int64_t n0, int64_t n1, const void* x_row, void* y);

} // namespace

} // namespace zmlx::cpu
