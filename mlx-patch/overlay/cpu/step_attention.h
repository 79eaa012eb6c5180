// Attention over a vector type V.

#pragma once

#include "cpu/step_lanes.h"

namespace zmlx::cpu {
namespace {

// ---- matrix product: c[m, n] (+)= a[m, k] @ b[k, n] in f32, each output summed over k in order

template <int MR, int NR, bool Fused>
inline void
product_tile(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t k, bool add) {
  F acc[MR][NR];
  for (int r = 0; r < MR; r++) {
    for (int j = 0; j < NR; j++) {
      acc[r][j] = add ? V::load(c + r * ldc + j * W) : V::set(0.0f);
    }
  }
  for (int64_t i = 0; i < k; i++) {
    F bv[NR];
    for (int j = 0; j < NR; j++) {
      bv[j] = V::load(b + i * ldb + j * W);
    }
    for (int r = 0; r < MR; r++) {
      auto av = V::set(a[r * lda + i]);
      for (int j = 0; j < NR; j++) {
        acc[r][j] = Fused ? V::fma(av, bv[j], acc[r][j]) : V::add(acc[r][j], V::mul(av, bv[j]));
      }
    }
  }
  for (int r = 0; r < MR; r++) {
    for (int j = 0; j < NR; j++) {
      V::store(c + r * ldc + j * W, acc[r][j]);
    }
  }
}

template <int MR, int NR, bool Fused>
inline void product_rows(
    const float* a,
    int64_t lda,
    const float* b,
    int64_t ldb,
    float* c,
    int64_t ldc,
    int64_t n,
    int64_t k,
    bool add) {
  int64_t j = 0;
  for (; j + NR * W <= n; j += NR * W) {
    product_tile<MR, NR, Fused>(a, lda, b + j, ldb, c + j, ldc, k, add);
  }
  if (NR > 2 && j < n) {
    product_tile<MR, 2, Fused>(a, lda, b + j, ldb, c + j, ldc, k, add);
  }
}

// n is a multiple of 2 * W.
template <bool Fused>
void product(
    const float* a,
    int64_t lda,
    const float* b,
    int64_t ldb,
    float* c,
    int64_t ldc,
    int64_t m,
    int64_t n,
    int64_t k,
    bool add) {
  int64_t i = 0;
  for (; i + V::kTileRows <= m; i += V::kTileRows) {
    product_rows<V::kTileRows, 2, Fused>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, n, k, add);
  }
  if (V::kTileRows > 4 && i + 4 <= m) {
    product_rows<4, V::kTileRows / 2, Fused>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, n, k, add);
    i += 4;
  }
  for (; i + 2 <= m; i += 2) {
    product_rows<2, 4, Fused>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, n, k, add);
  }
  if (i < m) {
    product_rows<1, 4, Fused>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, n, k, add);
  }
}

// ---- attention

// [keys, head_dim] -> kt [head_dim, kKeyBlock] f32; keys past `keys` are zero.
template <class T>
void pack_tile(const uint8_t* k, int64_t row_bytes, int64_t keys, int64_t dim, float* kt) {
  for (int64_t d = 0; d < dim; d += W) {
    int64_t count = dim - d;
    F tile[W];
    for (int i = 0; i < W; i++) {
      tile[i] = i < keys ? load_some<T>(typed<T>(k + i * row_bytes) + d, count) : V::set(0.0f);
    }
    V::transpose(tile);
    for (int i = 0; i < W && i < count; i++) {
      V::store(kt + (d + i) * kKeyBlock, tile[i]);
    }
  }
}

// The same for W keys of a 16-bit type, two values to a lane: half the shuffles.
template <class T>
void pack_pairs(const uint8_t* k, int64_t row_bytes, int64_t dim, float* kt) {
  int64_t d = 0;
  for (; d + 2 * W <= dim; d += 2 * W) {
    F tile[W];
    for (int i = 0; i < W; i++) {
      tile[i] = V::load(reinterpret_cast<const float*>(k + i * row_bytes + d * 2));
    }
    V::transpose(tile);
    for (int i = 0; i < W; i++) {
      F even, odd;
      T::split(tile[i], even, odd);
      V::store(kt + (d + 2 * i) * kKeyBlock, even);
      V::store(kt + (d + 2 * i + 1) * kKeyBlock, odd);
    }
  }
  if (d < dim) {
    pack_tile<T>(k + d * 2, row_bytes, W, dim - d, kt + d * kKeyBlock);
  }
}

template <class T>
void pack_keys(const uint8_t* k, int64_t row_bytes, int64_t keys, int64_t dim, float* kt) {
  for (int64_t t = 0; t < round_up(keys, 2 * W); t += W) {
    if constexpr (sizeof(typename T::S) == 2 && W > 1) {
      if (t + W <= keys) {
        pack_pairs<T>(k + t * row_bytes, row_bytes, dim, kt + t);
        continue;
      }
    }
    pack_tile<T>(k + t * row_bytes, row_bytes, keys - t, dim, kt + t);
  }
}

// [keys, dim] -> vf [keys, stride] f32, padded with zeros.
template <class T>
void widen_values(const uint8_t* v, int64_t row_bytes, int64_t keys, int64_t dim, float* vf, int64_t stride) {
  int64_t whole = dim / W * W;
  for (int64_t i = 0; i < keys; i++) {
    auto row = typed<T>(v + i * row_bytes);
    float* out = vf + i * stride;
    for (int64_t d = 0; d < whole; d += W) {
      V::store(out + d, T::load(row + d));
    }
    for (int64_t d = whole; d < stride; d += W) {
      V::store(out + d, d < dim ? load_n<T>(row + d, dim - d) : V::set(0.0f));
    }
  }
}

template <class T>
F smallest() {
  if (sizeof(typename T::S) == 4) {
    return V::set(-3.402823466e+38f);
  }
  auto bf16 = V::set(-3.38953139e38f);
  return V::select(V::lt(T::round(bf16), V::set(-3.4e38f)), V::set(-65504.0f), bf16);
}

// exp(score - max) of one row in place, scores rounded to the type first, for scores from .. to. x holds the raw products
// and has room for whole vectors. Returns the maximum, of which `sink` is part.
template <class T>
float exp_row(float* x, int64_t from, int64_t to, bool blind, const float* sink) {
  int64_t start = from / W * W;
  for (int64_t j = start; j < to; j += W) {
    V::store(x + j, blind ? smallest<T>() : T::round(V::load(x + j)));
  }
  float max = maximum_of(x + from, to - from);
  if (sink && (*sink != *sink || *sink > max)) {
    max = *sink;
  }
  for (int64_t j = start; j < to; j += W) {
    V::store(x + j, exp_of(V::sub(V::load(x + j), V::set(max))));
  }
  return max;
}

inline float exp_of_one(float x) {
  alignas(64) float lanes[W];
  V::store(lanes, exp_of(V::set(x)));
  return lanes[0];
}

// sums[i] += x[i][0 .. n[i] - 1], each in order; G chains hide the latency of one addition.
template <int G>
void sums_in_order(const float* const* x, const int64_t* n, float* sums) {
  float s[G];
  int64_t common = n[0];
  for (int i = 0; i < G; i++) {
    s[i] = sums[i];
    common = n[i] < common ? n[i] : common;
  }
  for (int64_t j = 0; j < common; j++) {
    for (int i = 0; i < G; i++) {
      s[i] += x[i][j];
    }
  }
  for (int i = 0; i < G; i++) {
    for (int64_t j = common; j < n[i]; j++) {
      s[i] += x[i][j];
    }
    sums[i] = s[i];
  }
}

// Rows of scores in place: softmax over what each row sees of the keys from `begin` on, rounded to the type; zeros for
// other keys up to padded.
template <class T>
void softmax_rows(const AttentionTask& t, float* x, int64_t stride, int64_t begin, int64_t padded) {
  float sums[kMaxQueries];
  const float* seen[kMaxQueries];
  int64_t n[kMaxQueries];
  for (int i = 0; i < t.num_rows; i++) {
    int64_t from = t.first[i] - begin;
    const float* sink = t.sinks ? t.sinks + i : nullptr;
    float max = exp_row<T>(x + i * stride, from, t.visible[i] - begin, i < t.blind, sink);
    // stock puts the sink before the scores
    sums[i] = sink ? exp_of_one(*sink - max) : 0;
    seen[i] = x + i * stride + from;
    n[i] = t.visible[i] - t.first[i];
  }
  int i = 0;
  for (; i + 8 <= t.num_rows; i += 8) {
    sums_in_order<8>(seen + i, n + i, sums + i);
  }
  for (; i < t.num_rows; i++) {
    sums_in_order<1>(seen + i, n + i, sums + i);
  }
  for (i = 0; i < t.num_rows; i++) {
    float* row = x + i * stride;
    int64_t from = t.first[i] - begin;
    int64_t to = t.visible[i] - begin;
    auto normalizer = V::set(1 / sums[i]);
    for (int64_t j = from / W * W; j < to; j += W) {
      V::store(row + j, T::round(V::mul(V::load(row + j), normalizer)));
    }
    __builtin_memset(row, 0, from * sizeof(float));
    __builtin_memset(row + to, 0, (padded - to) * sizeof(float));
  }
}

struct Scratch {
  int64_t q_stride;
  int64_t q_rope_stride;
  int64_t score_stride;
  int64_t value_stride;
  float* q;
  float* q_rope;
  float* scores;
  float* rope_scores;
  float* out;
  float* kt;
  float* vf;
  float* max;
  float* sum;

  Scratch(const AttentionTask& t, bool exact) {
    q_stride = round_up(t.head_dim, kMaxLanes);
    q_rope_stride = round_up(t.rope_dim, kMaxLanes);
    score_stride = exact ? round_up(t.span, kKeyBlock) + kKeyBlock : kKeyBlock;
    value_stride = round_up(t.value_dim, kPad);
    kt = t.scratch;
    vf = kt + kKeyBlock * (t.head_dim > t.rope_dim ? t.head_dim : t.rope_dim);
    q = vf + kKeyBlock * value_stride;
    q_rope = q + t.num_rows * q_stride;
    scores = q_rope + t.num_rows * q_rope_stride;
    rope_scores = scores + t.num_rows * score_stride;
    out = rope_scores + t.num_rows * kKeyBlock;
    max = out + t.num_rows * value_stride;
    sum = max + kMaxQueries;
  }
};

inline int first_row_that_sees(const AttentionTask& t, int64_t key) {
  int i = 0;
  while (i < t.num_rows && t.visible[i] <= key) {
    i++;
  }
  return i;
}

inline int64_t most_visible(const AttentionTask& t) {
  int64_t n = 0;
  for (int i = 0; i < t.num_rows; i++) {
    n = t.visible[i] > n ? t.visible[i] : n;
  }
  return n;
}

// The block of keys with the first one that any row sees.
inline int64_t first_block(const AttentionTask& t) {
  return t.first[0] / kKeyBlock * kKeyBlock;
}

// Rows of queries times the scale, rounded to the type where that is asked for.
template <class T, bool Round>
void scale_queries(const AttentionTask& t, const uint8_t* const* from, int64_t dim, float* to, int64_t stride) {
  auto scale = Round ? T::round(V::set(t.scale)) : V::set(t.scale);
  for (int i = 0; i < t.num_rows; i++) {
    for (int64_t d = 0; d < dim; d += W) {
      auto q = V::mul(scale, load_some<T>(typed<T>(from[i]) + d, dim - d));
      V::store(to + i * stride + d, Round ? T::round(q) : q);
    }
  }
}

template <class T>
void attention_exact_t(const AttentionTask& t) {
  Scratch s(t, true);
  scale_queries<T, true>(t, t.q, t.head_dim, s.q, s.q_stride);
  scale_queries<T, true>(t, t.q_rope, t.rope_dim, s.q_rope, s.q_rope_stride);
  int64_t begin = first_block(t);
  int64_t end = most_visible(t);
  for (int64_t k0 = begin; k0 < end; k0 += kKeyBlock) {
    int64_t keys = end - k0 < kKeyBlock ? end - k0 : kKeyBlock;
    int64_t width = round_up(keys, 2 * W);
    int row = first_row_that_sees(t, k0);
    float* scores = s.scores + row * s.score_stride + k0 - begin;
    pack_keys<T>(t.k + k0 * t.k_row_bytes, t.k_row_bytes, keys, t.head_dim, s.kt);
    product<false>(
        s.q + row * s.q_stride,
        s.q_stride,
        s.kt,
        kKeyBlock,
        scores,
        s.score_stride,
        t.num_rows - row,
        width,
        t.head_dim,
        false);
    if (t.rope_dim == 0) {
      continue;
    }
    pack_keys<T>(t.k_rope + k0 * t.k_rope_row_bytes, t.k_rope_row_bytes, keys, t.rope_dim, s.kt);
    product<false>(
        s.q_rope + row * s.q_rope_stride,
        s.q_rope_stride,
        s.kt,
        kKeyBlock,
        s.rope_scores,
        kKeyBlock,
        t.num_rows - row,
        width,
        t.rope_dim,
        false);
    for (int i = 0; i < t.num_rows - row; i++) {
      float* x = scores + i * s.score_stride;
      for (int64_t j = 0; j < width; j += W) {
        auto rotated = T::round(V::load(s.rope_scores + i * kKeyBlock + j));
        V::store(x + j, V::add(T::round(V::load(x + j)), rotated));
      }
    }
  }
  softmax_rows<T>(t, s.scores, s.score_stride, begin, round_up(end - begin, kKeyBlock));
  for (int64_t k0 = begin; k0 < end; k0 += kKeyBlock) {
    int64_t keys = end - k0 < kKeyBlock ? end - k0 : kKeyBlock;
    int row = first_row_that_sees(t, k0);
    widen_values<T>(t.v + k0 * t.v_row_bytes, t.v_row_bytes, keys, t.value_dim, s.vf, s.value_stride);
    product<false>(
        s.scores + row * s.score_stride + k0 - begin,
        s.score_stride,
        s.vf,
        s.value_stride,
        s.out + row * s.value_stride,
        s.value_stride,
        t.num_rows - row,
        s.value_stride,
        keys,
        k0 > begin);
  }
  for (int i = 0; i < t.num_rows; i++) {
    for (int64_t d = 0; d < t.value_dim; d += W) {
      store_some<T>(typed<T>(t.out[i]) + d, V::load(s.out + i * s.value_stride + d), t.value_dim - d);
    }
  }
}

// Softmax over blocks of keys with a running maximum and sum (arXiv:2205.14135).
template <class T>
void attention_fast_t(const AttentionTask& t) {
  Scratch s(t, false);
  scale_queries<T, false>(t, t.q, t.head_dim, s.q, s.q_stride);
  scale_queries<T, false>(t, t.q_rope, t.rope_dim, s.q_rope, s.q_rope_stride);
  for (int i = 0; i < t.num_rows; i++) {
    s.max[i] = t.sinks ? t.sinks[i] : -kInf;
    s.sum[i] = t.sinks ? 1 : 0;
  }
  int64_t begin = first_block(t);
  int64_t end = most_visible(t);
  for (int64_t k0 = begin; k0 < end; k0 += kKeyBlock) {
    int64_t keys = end - k0 < kKeyBlock ? end - k0 : kKeyBlock;
    int row = first_row_that_sees(t, k0);
    float* scores = s.scores + row * s.score_stride;
    int64_t width = round_up(keys, 2 * W);
    pack_keys<T>(t.k + k0 * t.k_row_bytes, t.k_row_bytes, keys, t.head_dim, s.kt);
    product<true>(
        s.q + row * s.q_stride,
        s.q_stride,
        s.kt,
        kKeyBlock,
        scores,
        s.score_stride,
        t.num_rows - row,
        width,
        t.head_dim,
        false);
    if (t.rope_dim > 0) {
      pack_keys<T>(t.k_rope + k0 * t.k_rope_row_bytes, t.k_rope_row_bytes, keys, t.rope_dim, s.kt);
      product<true>(
          s.q_rope + row * s.q_rope_stride,
          s.q_rope_stride,
          s.kt,
          kKeyBlock,
          scores,
          s.score_stride,
          t.num_rows - row,
          width,
          t.rope_dim,
          true);
    }
    for (int i = row; i < t.num_rows; i++) {
      float* x = s.scores + i * s.score_stride;
      int64_t from = t.first[i] > k0 ? t.first[i] - k0 : 0;
      int64_t n = t.visible[i] - k0 < keys ? t.visible[i] - k0 : keys;
      if (n <= from) {
        __builtin_memset(x, 0, kKeyBlock * sizeof(float));
        continue;
      }
      if (i < t.blind) {
        V::store(x, smallest<T>());
        for (int64_t j = 1; j < n; j++) {
          x[j] = x[0];
        }
      }
      float max = maximum_of(x + from, n - from);
      max = max > s.max[i] || max != max ? max : s.max[i];
      auto m = V::set(max);
      for (int64_t j = 0; j < from; j++) {
        x[j] = -kInf;
      }
      for (int64_t j = n; j < round_up(n, W); j++) {
        x[j] = -kInf;
      }
      auto sum = V::set(0.0f);
      for (int64_t j = 0; j < n; j += W) {
        auto e = exp_of(V::sub(V::load(x + j), m));
        V::store(x + j, e);
        sum = V::add(sum, e);
      }
      __builtin_memset(x + n, 0, (kKeyBlock - n) * sizeof(float));
      float* out = s.out + i * s.value_stride;
      float keep = 0;
      if (k0 > begin || t.sinks) {
        keep = s.max[i] == max ? 1 : exp_of_one(s.max[i] - max);
        if (keep != 1 && k0 > begin) {
          for (int64_t d = 0; d < s.value_stride; d += W) {
            V::store(out + d, V::mul(V::load(out + d), V::set(keep)));
          }
        }
      }
      s.sum[i] = s.sum[i] * keep + sum_of(sum);
      s.max[i] = max;
    }
    widen_values<T>(t.v + k0 * t.v_row_bytes, t.v_row_bytes, keys, t.value_dim, s.vf, s.value_stride);
    product<true>(
        s.scores + row * s.score_stride,
        s.score_stride,
        s.vf,
        s.value_stride,
        s.out + row * s.value_stride,
        s.value_stride,
        t.num_rows - row,
        s.value_stride,
        keys,
        k0 > begin);
  }
  for (int i = 0; i < t.num_rows && t.parts; i++) {
    float* part = t.parts + i * attention_part(t.value_dim);
    part[0] = s.max[i];
    part[1] = s.sum[i];
    __builtin_memcpy(part + kPad, s.out + i * s.value_stride, s.value_stride * sizeof(float));
  }
  for (int i = 0; i < t.num_rows && !t.parts; i++) {
    auto norm = V::set(1 / s.sum[i]);
    for (int64_t d = 0; d < t.value_dim; d += W) {
      auto o = V::mul(V::load(s.out + i * s.value_stride + d), norm);
      store_some<T>(typed<T>(t.out[i]) + d, o, t.value_dim - d);
    }
  }
}

} // namespace
} // namespace zmlx::cpu
