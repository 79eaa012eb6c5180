// Rows of x times transposed weights on AVX-512, f32 accumulation in any order: included by one translation unit per
// way of multiplying, never by baseline code.
//
// Idea:    a lane is a slice of K. A policy P unpacks a block of a weight row (64 bytes, or 64 weights of 3, 5 or 6 bits)
//          once and multiplies it by each row's share of x into 16 partial sums, neighbouring weights to a lane. The
//          group's scale multiplies these, its bias the sum of the group's x. P::Product does so; it is the same for
//          several dtypes where nothing but x and the result is of the dtype.
// Layout:  P stores x in the order in which it unpacks the weights, once per call, one row once per launch and thread. P::tile rows of x are met together,
//          their sums in registers.
// Memory:  weight rows are read one after the other, so that the addresses only ever rise, and prefetched at a fixed
//          distance: with pages of 4 KiB the processor's own prefetcher stops at every page. Four rows side by side
//          reached two thirds of the bandwidth. Into all levels of the cache: where the last one is large, part of a
//          model stays in it from token to token.
// Limits:  K a multiple of the group.

#pragma once

#include <utility>

#include "cpu/exact_avx512.h"
#include "cpu/stored_x.h"

namespace zmlx::cpu {

namespace {

constexpr int64_t kAhead = 4096; // bytes of weights between a prefetch and its use

// What a kernel takes at once: 64 bytes where dwords hold whole weights, otherwise 64 weights.
template <int bits>
struct Packing {
  static constexpr int per_lane = 32 % bits ? 4 : 32 / bits; // weights that one lane of the sums stands for
  static constexpr int per_block = 16 * per_lane;
  static constexpr int bytes = per_block * bits / 8;
};

// f(0), f(1), ... with constants, so that arrays indexed by them live in registers.
template <int n, typename F>
ZMLX_INLINE void repeat(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) ZMLX_LAMBDA {
    (f(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, n>{});
}

// n vectors whose items, one after the other, go round n fields, to one vector for each field. pick(a, b, odd) has every
// second item of a and b.
template <int n, typename V, typename F>
ZMLX_INLINE void deinterleave(V* v, F pick) {
  if constexpr (n > 1) {
    V even[n / 2], odd[n / 2];
    repeat<n / 2>([&](auto i) ZMLX_LAMBDA {
      even[i] = pick(v[2 * i], v[2 * i + 1], 0);
      odd[i] = pick(v[2 * i], v[2 * i + 1], 1);
    });
    deinterleave<n / 2>(even, pick);
    deinterleave<n / 2>(odd, pick);
    repeat<n / 2>([&](auto i) ZMLX_LAMBDA {
      v[2 * i] = even[i];
      v[2 * i + 1] = odd[i];
    });
  }
}

ZMLX_INLINE __m512 round_bf16(__m512 v) {
  __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_mov_ps(RoundBF16Integer::one(v), nan, v);
}

ZMLX_INLINE __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0;
}

template <int bytes>
ZMLX_INLINE __m512i first_bytes(const uint8_t* p) {
  return bytes == 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((1ull << bytes % 64) - 1, p);
}

// The sums of four vectors.
ZMLX_INLINE __m128 reduce4(__m512 a, __m512 b, __m512 c, __m512 d) {
  auto half = [](__m512 v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); };
  __m256 v = _mm256_hadd_ps(_mm256_hadd_ps(half(a), half(b)), _mm256_hadd_ps(half(c), half(d)));
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

// What does not change from weight row to weight row.
struct FastTile {
  const uint8_t* x; // as P stores it, row after row
  int64_t x_row; // bytes
  const float* x_sums; // one per group, row after row
  const float* scale_table; // modes whose scales are bytes
  __m512i scale_lanes[32]; // lane -> scale, for each block that 16 scales cover; 32 as 8 bits and groups of 128 need
};

template <DType D, Mode mode>
ZMLX_INLINE __m512 load_scales(const FastTile& f, const uint8_t* scales, int64_t g, int64_t groups) {
  __mmask16 mask = first_lanes(groups - g);
  if constexpr (mode == Mode::Affine) {
    return load_values<D>(scales + g * size_of(D), mask);
  } else {
    __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, scales + g));
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, f.scale_table, 4);
  }
}

// sums[i]: the product of weight row n with row i of x, spread over 16 lanes.
template <typename P, int rows>
ZMLX_INLINE void fast_row(const P& product, const QuantView& q, const FastTile& f, int64_t n, __m512* sums) {
  constexpr DType D = P::dtype;
  constexpr int64_t item = P::mode == Mode::Affine ? size_of(D) : 1;
  const int64_t row_bytes = q.K * P::bits / 8;
  const int64_t groups = q.K / q.group_size;
  const int blocks_per_scales = q.group_size / Packing<P::bits>::per_lane;
  const uint8_t* w = q.w + n * q.w_stride;
  const uint8_t* scales = q.scales + n * q.scale_stride;
  const uint8_t* biases = P::mode == Mode::Affine ? q.biases + n * q.bias_stride : nullptr;

  const int64_t rows_ahead = (kAhead + row_bytes - 1) / row_bytes;
  const int64_t ahead = kAhead + rows_ahead * (q.w_stride - row_bytes);
  for (int64_t i = 0; i < groups * item; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(scales + rows_ahead * q.scale_stride + i), _MM_HINT_T0);
    if constexpr (P::mode == Mode::Affine) {
      _mm_prefetch(reinterpret_cast<const char*>(biases + rows_ahead * q.bias_stride + i), _MM_HINT_T0);
    }
  }
  __m512 sum[rows];
  repeat<rows>([&](auto i) ZMLX_LAMBDA { sum[i] = _mm512_setzero_ps(); });
  __m512 scale16 = _mm512_setzero_ps();
  constexpr int bytes = Packing<P::bits>::bytes;
  const int64_t full = row_bytes / bytes;
  int64_t g = 0;
  int in_scales = 0;
  auto block = [&](__m512i v, int64_t b) ZMLX_LAMBDA {
    if (in_scales == 0) {
      scale16 = load_scales<D, P::mode>(f, scales, g, groups);
      g += 16;
    }
    const typename P::Weights weights = product.unpack(v);
    const __m512 scale = _mm512_permutexvar_ps(f.scale_lanes[in_scales], scale16);
    repeat<rows>([&](auto i) ZMLX_LAMBDA {
      sum[i] = _mm512_fmadd_ps(scale, P::multiply(weights, f.x + i * f.x_row + b * P::x_bytes), sum[i]);
    });
    in_scales = in_scales + 1 == blocks_per_scales ? 0 : in_scales + 1;
  };
  for (int64_t b = 0; b < full; b++) {
    _mm_prefetch(reinterpret_cast<const char*>(w + b * bytes + ahead), _MM_HINT_T0);
    block(first_bytes<bytes>(w + b * bytes), b);
  }
  if (int64_t left = row_bytes % bytes) {
    block(_mm512_maskz_loadu_epi8((1ull << left) - 1, w + full * bytes), full);
  }
  if constexpr (P::mode == Mode::Affine) {
    for (int64_t k = 0; k < groups; k += 16) {
      __mmask16 mask = first_lanes(groups - k);
      __m512 bias = load_values<D>(biases + k * item, mask);
      repeat<rows>([&](auto i) ZMLX_LAMBDA {
        sum[i] = _mm512_fmadd_ps(bias, _mm512_maskz_loadu_ps(mask, f.x_sums + i * groups + k), sum[i]);
      });
    }
  }
  repeat<rows>([&](auto i) ZMLX_LAMBDA { sums[i] = sum[i]; });
}

ZMLX_INLINE void store_rounded(DType dtype, uint8_t* p, __m512 v, __mmask16 mask) {
  switch (dtype) {
    case DType::F32:
      return store_values<DType::F32>(p, v, mask);
    case DType::F16:
      return store_values<DType::F16>(p, v, mask);
    case DType::BF16:
      return store_values<DType::BF16>(p, round_bf16(v), mask);
  }
}

// Weight rows n0 .. n1 times `rows` rows of x.
template <typename P, int rows>
void fast_tile(const P& product, const QuantView& q, const FastTile& f, int64_t n0, int64_t n1, void* const* ys) {
  for (int64_t n = n0; n < n1; n += 4) {
    __m512 sums[4][rows] = {};
    const int count = n1 - n < 4 ? static_cast<int>(n1 - n) : 4;
    for (int r = 0; r < count; r++) {
      fast_row<P, rows>(product, q, f, n + r, sums[r]);
    }
    for (int i = 0; i < rows; i++) {
      __m512 v = _mm512_zextps128_ps512(reduce4(sums[0][i], sums[1][i], sums[2][i], sums[3][i]));
      store_rounded(q.dtype, static_cast<uint8_t*>(ys[i]) + (n - n0) * size_of(q.dtype), v, first_lanes(count));
    }
  }
}

template <typename P>
void fast_rows(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  constexpr DType D = P::dtype;
  constexpr int64_t item = size_of(D);
  constexpr int per_block = Packing<P::bits>::per_block;
  const int64_t blocks = (q.K + per_block - 1) / per_block;
  const int64_t groups = q.K / q.group_size;
  const int64_t x_row = blocks * P::x_bytes;
  const int64_t x_size = m * (x_row + groups * 4);
  static const char kind = 0; // its address is this instance's own
  const StoredX stored = m == 1 ? stored_x(xs[0], &kind, q.group_size, x_size) : StoredX{kernel_scratch(x_size), false};
  auto x = static_cast<uint8_t*>(stored.data);
  auto x_sums = reinterpret_cast<float*>(x + m * x_row);
  for (int i = 0; i < m && !stored.is_stored; i++) {
    auto in = static_cast<const uint8_t*>(xs[i]);
    for (int64_t b = 0; b < blocks; b++) {
      P::store_x(in + b * per_block * item, q.K - b * per_block, x + i * x_row + b * P::x_bytes);
    }
    for (int64_t g = 0; P::mode == Mode::Affine && g < groups; g++) {
      __m512 s = _mm512_setzero_ps();
      for (int k = 0; k < q.group_size; k += 16) {
        s = _mm512_add_ps(s, load_values<D>(in + (g * q.group_size + k) * item, 0xffff));
      }
      x_sums[i * groups + g] = _mm512_reduce_add_ps(s);
    }
  }
  FastTile f{x, x_row, x_sums, nullptr, {}};
  if constexpr (P::mode != Mode::Affine) {
    const auto& tables = float_tables();
    f.scale_table = q.mode == Mode::Nvfp4 ? tables.fp8 : D == DType::F16 ? tables.e8m0_f16 : tables.e8m0;
  }
  // Lane d of block b belongs to group (b * 16 + d) * per_lane / group_size.
  const int shift = __builtin_ctz(q.group_size / Packing<P::bits>::per_lane);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int b = 0; b < 1 << shift; b++) {
    f.scale_lanes[b] = _mm512_srli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(b * 16)), shift);
  }
  using Product = typename P::Product;
  const Product product;
  for (int i = 0; i < m;) {
    const int left = m - i;
    const int tile = left >= P::tile ? P::tile : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    f.x = x + i * x_row;
    f.x_sums = x_sums + i * groups;
    (tile == P::tile ? fast_tile<Product, P::tile>
         : tile == 4 ? fast_tile<Product, 4>
         : tile == 2 ? fast_tile<Product, 2>
                     : fast_tile<Product, 1>)(product, q, f, n0, n1, ys + i);
    i += tile;
  }
}

} // namespace

} // namespace zmlx::cpu
