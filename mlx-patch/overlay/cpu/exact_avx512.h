// Exact quantized products for AVX-512: included by one translation unit per rounding, never by baseline code.
//
// Idea:    a lane is an output, never a slice of K. Every lane does what stock's scalar loop does: dequantize (round),
//          add the bias (round), multiply by x (round), add to the sum (round). 128 outputs run side by side, so the
//          latency of the chain add-round-add-round is hidden.
// Layout:  64 bytes of 16 rows are loaded and transposed as dwords, after which one vector holds the same bit field of
//          16 rows: unpacking is then a shift with a constant. A chunk of K is unpacked once into scratch (32 KB, in
//          L1) and met by every row of x.
// Rounding: a policy R; it works on pairs of vectors (32 outputs) and may permute the lanes of a pair, consistently.
// Bound:   about 26 operations per 32 weights and row for bf16; 8 for every further row of x.
// Limits:  bits 2, 3, 4, 5, 6, 8; groups of 16 to 128; any N; K a multiple of the group.

#pragma once

#include <type_traits>

#include "cpu/vectors_avx512.h"
#include "cpu/with_codes.h"

namespace zmlx::cpu {

namespace {

constexpr int kBlock = 128; // outputs side by side
constexpr int kGroups = 16; // scales are transposed for this many groups at once

// Rounding policies. `Order` names the arrangement of a pair's 32 lanes: 0 is rows 0 .. 15 and 16 .. 31; each further
// step applies one fixed permutation (see RoundBF16Hardware). Most policies keep order 0.

struct RoundF32 {
  static constexpr DType dtype = DType::F32;
  static constexpr int kAffineOrder = 0, kFloatOrder = 0, kBiasOrder = 0;
  static ZMLX_INLINE Pair round(Pair p) {
    return p;
  }
};

struct RoundF16 {
  static constexpr DType dtype = DType::F16;
  static constexpr int kAffineOrder = 0, kFloatOrder = 0, kBiasOrder = 0;
  static ZMLX_INLINE __m512 one(__m512 v) {
    return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static ZMLX_INLINE Pair round(Pair p) {
    return {one(p.a), one(p.b)};
  }
};

// By integer arithmetic: right for denormals, and a NaN stays one (its low half is zero, see qmm_avx512.cpp).
struct RoundBF16Integer {
  static constexpr DType dtype = DType::BF16;
  static constexpr int kAffineOrder = 0, kFloatOrder = 0, kBiasOrder = 0;
  static ZMLX_INLINE __m512 one(__m512 v) {
    __m512i u = as_int(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    u = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    return as_float(_mm512_and_si512(u, _mm512_set1_epi32(0xffff0000)));
  }
  static ZMLX_INLINE Pair round(Pair p) {
    return {one(p.a), one(p.b)};
  }
};

// Weights in scratch as f32.
struct StoredFloats {
  using Stored = float;
  static ZMLX_INLINE void store_weight(Stored* w, Pair p) {
    _mm512_store_ps(w, p.a);
    _mm512_store_ps(w + 16, p.b);
  }
  static ZMLX_INLINE Pair load_weight(const Stored* w) {
    return {_mm512_load_ps(w), _mm512_load_ps(w + 16)};
  }
};

// The steps of a kernel in terms of R::round, for policies that keep the order of lanes.
template <typename R>
struct Steps : StoredFloats {
  using Storing = StoredFloats; // how weights are stored
  using Math = Steps; // all but `dtype` and `finish`: policies that share it share what is compiled for it
  static ZMLX_INLINE Pair dequantize(Pair q, Pair scale, Pair bias) {
    Pair scaled = R::round({_mm512_mul_ps(scale.a, q.a), _mm512_mul_ps(scale.b, q.b)});
    return R::round({_mm512_add_ps(scaled.a, bias.a), _mm512_add_ps(scaled.b, bias.b)});
  }
  static ZMLX_INLINE Pair multiply_add(Pair sum, __m512 x, Pair w) {
    Pair product = R::round({_mm512_mul_ps(x, w.a), _mm512_mul_ps(x, w.b)});
    return R::round({_mm512_add_ps(sum.a, product.a), _mm512_add_ps(sum.b, product.b)});
  }
  static ZMLX_INLINE Pair scale_add(Pair sum, Pair scale, Pair group_sum) {
    Pair product = R::round({_mm512_mul_ps(scale.a, group_sum.a), _mm512_mul_ps(scale.b, group_sum.b)});
    return R::round({_mm512_add_ps(sum.a, product.a), _mm512_add_ps(sum.b, product.b)});
  }
  static ZMLX_INLINE Pair permute(Pair p, int) {
    return p;
  }
  static ZMLX_INLINE Pair unpermute(Pair p, int) {
    return p;
  }
  static ZMLX_INLINE Pair finish(Pair p) {
    return p;
  }
};

template <typename R>
struct InOrder : R, Steps<R> {};

// Weight `i` (0 .. 31) of a unit of 32 as f32. `t` holds the unit's dwords, each transposed: dword d of 16 rows lies at
// t + d * stride.
template <Mode mode, int bits>
struct Unpack {
  __m512 low; // values 0 .. 15, repeated where there are fewer
  __m512 high; // 16 .. 31 for 5 bits

  ZMLX_INLINE Unpack() {
    alignas(64) float v[32];
    for (int i = 0; i < 32; i++) {
      v[i] = static_cast<float>(i & ((1 << bits) - 1));
      if (mode != Mode::Affine && bits == 4) {
        const float fp4[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
        v[i] = i & 8 ? -fp4[i & 7] : fp4[i & 7];
      }
    }
    low = _mm512_load_ps(v);
    high = _mm512_load_ps(v + 16);
  }

  template <int i>
  ZMLX_INLINE __m512 get(const uint32_t* t, int stride) const {
    constexpr int d = i * bits / 32;
    constexpr int shift = i * bits % 32;
    if constexpr (mode != Mode::Affine && bits == 8) {
      return e4m3(_mm512_slli_epi32(_mm512_load_si512(t + d * stride), 24 - shift));
    } else {
      __m512i v = _mm512_load_si512(t + d * stride);
      if constexpr (shift > 0) {
        v = _mm512_srli_epi32(v, shift);
      }
      if constexpr (shift + bits > 32) {
        v = _mm512_or_si512(v, _mm512_slli_epi32(_mm512_load_si512(t + (d + 1) * stride), 32 - shift));
      }
      // A permutation looks only at the low 4 (or 5) bits of its index: nothing to mask.
      if constexpr (bits <= 4) {
        return _mm512_permutexvar_ps(v, low);
      } else if constexpr (bits == 5) {
        return _mm512_permutex2var_ps(low, v, high);
      } else {
        return _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32((1 << bits) - 1)));
      }
    }
  }
};

// Everything one call needs, per thread.
template <typename Stored>
struct alignas(64) Workspace {
  static constexpr int kChunk = 32768 / (kBlock * static_cast<int>(sizeof(Stored)));
  uint32_t packed[32 * kBlock]; // dwords of up to 128 weights, transposed: [dword][row]
  float scales[kGroups * kBlock]; // [group][row], in order 0
  float biases[kGroups * kBlock]; // [group][row], in order kBiasOrder
  Stored weights[kChunk * kBlock]; // [k][row]
  float sums[kMaxRows * kBlock]; // [row of x][row], in the order of the accumulators
  float group_sums[kMaxRows * kBlock];
};

// Scales (or biases) of `groups` groups of 128 rows, transposed to f32.
template <DType D>
void load_affine(const uint8_t* const rows[kBlock], int active, int64_t first, int groups, float* out) {
  __mmask16 mask = (1u << groups) - 1;
  for (int r = 0; r < active; r += 16) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      v[i] = as_int(load_values<D>(rows[r + i] + first * (D == DType::F32 ? 4 : 2), mask));
    }
    transpose16(v);
    for (int i = 0; i < groups; i++) {
      _mm512_store_si512(out + i * kBlock + r, v[i]);
    }
  }
}

inline void load_bytes(
    const uint8_t* const rows[kBlock],
    int active,
    int64_t first,
    int groups,
    const float* table,
    float* out) {
  __mmask16 mask = (1u << groups) - 1;
  for (int r = 0; r < active; r += 16) {
    __m512i v[16];
    for (int i = 0; i < 16; i++) {
      __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, rows[r + i] + first));
      v[i] = as_int(_mm512_i32gather_ps(index, table, 4));
    }
    transpose16(v);
    for (int i = 0; i < groups; i++) {
      _mm512_store_si512(out + i * kBlock + r, v[i]);
    }
  }
}

template <typename S, Mode mode, int bits, int i, int end>
ZMLX_INLINE void unpack_weights(
    const Unpack<mode, bits>& unpack,
    const uint32_t* t,
    Pair scale,
    Pair bias,
    typename S::Stored* w) {
  if constexpr (i < end) {
    Pair q{unpack.template get<i>(t, kBlock), unpack.template get<i>(t + 16, kBlock)};
    if constexpr (mode == Mode::Affine) {
      q = S::dequantize(q, scale, bias);
    }
    S::store_weight(w + i * kBlock, q);
    unpack_weights<S, mode, bits, i + 1, end>(unpack, t, scale, bias, w);
  }
}

// Unpacks `count` weights (a multiple of 16; whole groups or parts of one) of all rows.
//   t: transposed dwords, the first weight at bit 0; w: [k][row]
template <typename S, Mode mode, int bits>
void unpack_chunk(
    const uint32_t* t,
    int pairs,
    int count,
    int first, // position of the first weight in its group
    int group_size,
    const float* scales, // of the group of the first weight
    const float* biases,
    typename S::Stored* w) {
  Unpack<mode, bits> unpack;
  for (int p = 0; p < pairs; p++) {
    Pair scale{}, bias{};
    for (int k = 0; k < count; k += 32) {
      if constexpr (mode == Mode::Affine) {
        int g = (first + k) / group_size * kBlock + p * 32;
        scale = {_mm512_load_ps(scales + g), _mm512_load_ps(scales + g + 16)};
        bias = {_mm512_load_ps(biases + g), _mm512_load_ps(biases + g + 16)};
      }
      const uint32_t* from = t + k * bits / 32 * kBlock + p * 32;
      typename S::Stored* to = w + k * kBlock + p * 32;
      if (mode != Mode::Affine && count - k < 32) {
        unpack_weights<S, mode, bits, 0, 16>(unpack, from, scale, bias, to);
      } else {
        unpack_weights<S, mode, bits, 0, 32>(unpack, from, scale, bias, to);
      }
    }
  }
}

template <typename S>
using UnpackChunk = void (*)(const uint32_t*, int, int, int, int, const float*, const float*, typename S::Stored*);

// Of a block this alone is compiled for every number of bits. Codes that are floats are stored as they are.
template <typename S>
UnpackChunk<S> unpacking_of(const QuantView& q) {
  return with_codes(q, [](auto mode, auto bits) -> UnpackChunk<S> {
    constexpr bool affine = mode == Mode::Affine;
    using Storing = std::conditional_t<affine, typename S::Math, typename S::Storing>;
    return unpack_chunk<Storing, mode == Mode::Nvfp4 ? Mode::Mxfp4 : mode(), bits()>;
  });
}

// Policies that have a multiply_add of more throughput and latency, for where many sums are under way.
template <typename S>
concept MultipliesMany = requires(Pair p, __m512 x) { S::multiply_add_many(p, x, p); };

// sums[m][pairs] += x[m][k] * w[k][pairs] for `count` values of k, rounding twice a step.
template <typename S, int pairs, int rows>
ZMLX_INLINE void accumulate(
    const typename S::Stored* w,
    const float* x,
    int64_t x_stride,
    int count,
    float* sums) {
  Pair sum[rows][pairs];
#pragma GCC unroll 4
  for (int m = 0; m < rows; m++) {
#pragma GCC unroll 4
    for (int p = 0; p < pairs; p++) {
      sum[m][p] = {
          _mm512_load_ps(sums + m * kBlock + p * 32), _mm512_load_ps(sums + m * kBlock + p * 32 + 16)};
    }
  }
  for (int k = 0; k < count; k++) {
    __m512 xk[rows];
#pragma GCC unroll 4
    for (int m = 0; m < rows; m++) {
      xk[m] = _mm512_set1_ps(x[m * x_stride + k]);
    }
#pragma GCC unroll 4
    for (int p = 0; p < pairs; p++) {
      Pair weight = S::load_weight(w + k * kBlock + p * 32);
#pragma GCC unroll 4
      for (int m = 0; m < rows; m++) {
        if constexpr (rows * pairs >= 6 && MultipliesMany<S>) {
          sum[m][p] = S::multiply_add_many(sum[m][p], xk[m], weight);
        } else {
          sum[m][p] = S::multiply_add(sum[m][p], xk[m], weight);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < rows; m++) {
#pragma GCC unroll 4
    for (int p = 0; p < pairs; p++) {
      _mm512_store_ps(sums + m * kBlock + p * 32, sum[m][p].a);
      _mm512_store_ps(sums + m * kBlock + p * 32 + 16, sum[m][p].b);
    }
  }
}

template <typename S, int pairs>
void accumulate_pairs(
    const typename S::Stored* w,
    const float* x,
    int64_t x_stride,
    int m,
    int count,
    float* sums) {
  constexpr int half = pairs > 2 ? 2 : pairs;
  int i = 0;
  for (; i + 4 <= m; i += 4) {
    for (int p = 0; p < pairs; p += half) {
      accumulate<S, half, 4>(w + p * 32, x + i * x_stride, x_stride, count, sums + i * kBlock + p * 32);
    }
  }
  if constexpr (MultipliesMany<S>) {
    if (i + 3 == m) {
      for (int p = 0; p < pairs; p += half) {
        accumulate<S, half, 3>(w + p * 32, x + i * x_stride, x_stride, count, sums + i * kBlock + p * 32);
      }
      return;
    }
  }
  for (; i + 2 <= m; i += 2) {
    accumulate<S, pairs, 2>(w, x + i * x_stride, x_stride, count, sums + i * kBlock);
  }
  for (; i < m; i++) {
    accumulate<S, pairs, 1>(w, x + i * x_stride, x_stride, count, sums + i * kBlock);
  }
}

template <typename S>
void accumulate_rows(
    const typename S::Stored* w,
    const float* x,
    int64_t x_stride,
    int m,
    int pairs,
    int count,
    float* sums) {
  if (pairs > 2) {
    accumulate_pairs<S, 4>(w, x, x_stride, m, count, sums);
  } else if (pairs == 2) {
    accumulate_pairs<S, 2>(w, x, x_stride, m, count, sums);
  } else {
    accumulate_pairs<S, 1>(w, x, x_stride, m, count, sums);
  }
}

// The rows of x as f32: [m][K rounded up to 16].
template <DType D>
void expand_x(int m, const void* const* x, int64_t K, int64_t stride, float* out) {
  for (int i = 0; i < m; i++) {
    auto row = static_cast<const uint8_t*>(x[i]);
    for (int64_t k = 0; k < K; k += 16) {
      __mmask16 mask = K - k >= 16 ? 0xffff : (1u << (K - k)) - 1;
      _mm512_store_ps(out + i * stride + k, load_values<D>(row + k * (D == DType::F32 ? 4 : 2), mask));
    }
  }
}

// The rows of a block, each anywhere: three pairs run as four.
struct BlockRows {
  const uint8_t* w[kBlock];
  const uint8_t* scales[kBlock];
  const uint8_t* biases[kBlock];
  int pairs{0};

  // Rows n0 .. n1 of a matrix, in `more` pairs; rows past the end repeat the last one, and are not stored.
  void add(const QuantView& q, int64_t n0, int64_t n1, int more) {
    for (int r = 0; r < more * 32; r++) {
      int64_t n = n0 + r < n1 ? n0 + r : n1 - 1;
      int at = pairs * 32 + r;
      w[at] = q.w + n * q.w_stride;
      scales[at] = q.scales + n * q.scale_stride;
      biases[at] = q.biases ? q.biases + n * q.bias_stride : nullptr;
    }
    pairs += more;
  }
};

template <typename S>
using WorkspaceOf = Workspace<typename S::Stored>;

// ws.sums: the products of a block's rows with m rows of x, which accumulate(weights, k, count, sums) adds up.
template <typename S, bool affine, typename Accumulate>
ZMLX_INLINE void block_sums(
    const QuantView& q,
    const BlockRows& rows,
    int m,
    UnpackChunk<S> unpack,
    WorkspaceOf<S>& ws,
    Accumulate accumulate) {
  constexpr DType D = S::dtype;
  constexpr int order = affine ? S::kAffineOrder : S::kFloatOrder;
  const int bits = q.bits;
  const int64_t groups = q.K / q.group_size;
  const int pairs = rows.pairs;
  const int active = pairs * 32;
  const float* scale_table = nullptr;
  if constexpr (!affine) {
    const auto& tables = float_tables();
    scale_table = q.mode == Mode::Nvfp4 ? tables.fp8 : D == DType::F16 ? tables.e8m0_f16 : tables.e8m0;
  }
  for (int i = 0; i < m * kBlock; i += 16) {
    _mm512_store_ps(ws.sums + i, _mm512_setzero_ps());
  }

  for (int64_t g0 = 0; g0 < groups; g0 += kGroups) {
    int here = groups - g0 < kGroups ? groups - g0 : kGroups;
    if constexpr (affine) {
      load_affine<D>(rows.scales, active, g0, here, ws.scales);
      load_affine<D>(rows.biases, active, g0, here, ws.biases);
      if constexpr (S::kBiasOrder != 0) {
        for (int i = 0; i < here * kBlock; i += 32) {
          Pair b = S::permute({_mm512_load_ps(ws.biases + i), _mm512_load_ps(ws.biases + i + 16)}, S::kBiasOrder);
          _mm512_store_ps(ws.biases + i, b.a);
          _mm512_store_ps(ws.biases + i + 16, b.b);
        }
      }
    } else {
      load_bytes(rows.scales, active, g0, here, scale_table, ws.scales);
      if constexpr (order != 0) {
        for (int i = 0; i < here * kBlock; i += 32) {
          Pair b = S::permute({_mm512_load_ps(ws.scales + i), _mm512_load_ps(ws.scales + i + 16)}, order);
          _mm512_store_ps(ws.scales + i, b.a);
          _mm512_store_ps(ws.scales + i + 16, b.b);
        }
      }
    }
    int64_t k_begin = g0 * q.group_size;
    int64_t k_end = (g0 + here) * q.group_size;
    for (int64_t k0 = k_begin; k0 < k_end; k0 += 128) {
      // Up to 128 weights of every row, as transposed dwords.
      int count = k_end - k0 < 128 ? k_end - k0 : 128;
      int dwords = count * bits / 32;
      for (int d = 0; d < dwords; d += 16) {
        __mmask16 mask = dwords - d >= 16 ? 0xffff : (1u << (dwords - d)) - 1;
        int64_t offset = k0 * bits / 8 + d * 4;
        for (int r = 0; r < active; r += 16) {
          __m512i v[16];
#pragma GCC unroll 16
          for (int i = 0; i < 16; i++) {
            v[i] = _mm512_maskz_loadu_epi32(mask, rows.w[r + i] + offset);
            _mm_prefetch(reinterpret_cast<const char*>(rows.w[r + i] + offset + 64), _MM_HINT_T0);
          }
          transpose16(v);
          int stored = dwords - d < 16 ? dwords - d : 16;
          for (int i = 0; i < stored; i++) {
            _mm512_store_si512(ws.packed + (d + i) * kBlock + r, v[i]);
          }
        }
      }
      constexpr int most = WorkspaceOf<S>::kChunk;
      constexpr int chunk = most < 128 ? most : 128;
      for (int c = 0; c < count; c += chunk) {
        int part = count - c < chunk ? count - c : chunk;
        int64_t k = k0 + c;
        int group = k / q.group_size - g0;
        unpack(
            ws.packed + c * bits / 32 * kBlock,
            pairs,
            part,
            k % q.group_size,
            q.group_size,
            ws.scales + group * kBlock,
            ws.biases + group * kBlock,
            ws.weights);
        if constexpr (affine) {
          accumulate(ws.weights, k, part, ws.sums);
        } else {
          // One sum per group, then sums += scale * group sum. Groups are 16 or 32 long and never straddle a chunk.
          for (int j = 0; j < part; j += q.group_size, group++) {
            for (int i = 0; i < m * kBlock; i += 16) {
              _mm512_store_ps(ws.group_sums + i, _mm512_setzero_ps());
            }
            accumulate(ws.weights + j * kBlock, k + j, q.group_size, ws.group_sums);
            for (int i = 0; i < m * kBlock; i += 32) {
              const float* s = ws.scales + group * kBlock + i % kBlock;
              Pair sum = S::Math::scale_add(
                  {_mm512_load_ps(ws.sums + i), _mm512_load_ps(ws.sums + i + 16)},
                  {_mm512_load_ps(s), _mm512_load_ps(s + 16)},
                  {_mm512_load_ps(ws.group_sums + i), _mm512_load_ps(ws.group_sums + i + 16)});
              _mm512_store_ps(ws.sums + i, sum.a);
              _mm512_store_ps(ws.sums + i + 16, sum.b);
            }
          }
        }
      }
    }
  }
}

// 32 sums of one row as values of y, of which `left` exist.
template <typename S, bool affine>
ZMLX_INLINE void store_sums(const float* sums, int64_t left, uint8_t* y) {
  constexpr DType D = S::dtype;
  constexpr int order = affine ? S::kAffineOrder : S::kFloatOrder;
  Pair v = S::finish(S::unpermute({_mm512_load_ps(sums), _mm512_load_ps(sums + 16)}, order));
  auto mask = [](int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0); };
  store_values<D>(y, v.a, mask(left));
  store_values<D>(y + 16 * size_of(D), v.b, mask(left - 16));
}

// One block of up to 128 outputs of transposed weights.
template <typename S, bool affine>
void exact_block(
    const QuantView& q,
    int64_t n0,
    int64_t n1,
    int m,
    const float* x,
    int64_t x_stride,
    void* const* y,
    int64_t y_first,
    UnpackChunk<S> unpack,
    WorkspaceOf<S>& ws) {
  constexpr int item = S::dtype == DType::F32 ? 4 : 2;
  const int used = static_cast<int>(n1 - n0 + 31) / 32;
  BlockRows rows;
  rows.add(q, n0, n1, used == 3 ? 4 : used);
  const int pairs = rows.pairs;
  auto accumulate = [&](const typename S::Stored* w, int64_t k, int count, float* sums) ZMLX_LAMBDA {
    accumulate_rows<typename S::Math>(w, x + k, x_stride, m, pairs, count, sums);
  };
  block_sums<S, affine>(q, rows, m, unpack, ws, accumulate);
  for (int i = 0; i < m; i++) {
    for (int p = 0; p < used; p++) {
      auto out = static_cast<uint8_t*>(y[i]) + (y_first + p * 32) * item;
      store_sums<S, affine>(ws.sums + i * kBlock + p * 32, n1 - n0 - p * 32, out);
    }
  }
}

template <typename S>
void exact_transposed(
    const QuantView& q,
    int64_t n0,
    int64_t n1,
    int m,
    const void* const* xs,
    void* const* ys,
    void* (*scratch)(int64_t bytes)) {
  int64_t x_stride = (q.K + 15) / 16 * 16;
  auto memory = static_cast<uint8_t*>(
      scratch(sizeof(WorkspaceOf<S>) + m * x_stride * static_cast<int64_t>(sizeof(float))));
  auto& ws = *reinterpret_cast<WorkspaceOf<S>*>(memory);
  auto x = reinterpret_cast<float*>(memory + sizeof(WorkspaceOf<S>));
  expand_x<S::dtype>(m, xs, q.K, x_stride, x);
  auto block = q.mode == Mode::Affine ? exact_block<S, true> : exact_block<S, false>;
  auto unpack = unpacking_of<S>(q);
  for (int64_t n = n0; n < n1; n += kBlock) {
    block(q, n, n + kBlock < n1 ? n + kBlock : n1, m, x, x_stride, ys, n - n0, unpack, ws);
  }
}

} // namespace

} // namespace zmlx::cpu
