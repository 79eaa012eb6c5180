// The step kernels over a vector type V, included once by each step_<isa>.cpp after it has defined V. Everything is in
// an unnamed namespace and no header of MLX or of the standard library's templates is used: code compiled for a newer
// instruction set must not become the program's copy of a shared inline function.
//
// V has W lanes: F (floats), M (mask); load, store, set, add, sub, mul, fma, div, sqrt, floor, max, lt, ge, gt,
// unordered, select, power_of_two, load_bf16, store_bf16, round_bf16, split_bf16 (two values of a 32-bit lane), the same
// for f16, transpose of a W x W tile, and integers I for sincos.

#include "cpu/step.h"

extern "C" float sinf(float);
extern "C" float cosf(float);

namespace zmlx::cpu {
namespace {

constexpr float kInf = __builtin_inff();
constexpr float kNaN = __builtin_nanf("");

using F = V::F;
using M = V::M;
constexpr int W = V::W;

struct TypeF32 {
  using S = float;
  static F load(const S* p) {
    return V::load(p);
  }
  static void store(S* p, F x) {
    V::store(p, x);
  }
  static F round(F x) {
    return x;
  }
};

struct TypeF16 {
  using S = uint16_t;
  static F load(const S* p) {
    return V::load_f16(p);
  }
  static void store(S* p, F x) {
    V::store_f16(p, x);
  }
  static F round(F x) {
    return V::round_f16(x);
  }
  static void split(F pairs, F& even, F& odd) {
    V::split_f16(pairs, even, odd);
  }
};

struct TypeBF16 {
  using S = uint16_t;
  static F load(const S* p) {
    return V::load_bf16(p);
  }
  static void store(S* p, F x) {
    V::store_bf16(p, x);
  }
  static F round(F x) {
    return V::round_bf16(x);
  }
  static void split(F pairs, F& even, F& odd) {
    V::split_bf16(pairs, even, odd);
  }
};

// n < W values, the other lanes zero.
template <class T>
F load_n(const typename T::S* p, int64_t n) {
  typename T::S buffer[W] = {};
  __builtin_memcpy(buffer, p, n * sizeof(*p));
  return T::load(buffer);
}

template <class T>
void store_n(typename T::S* p, F x, int64_t n) {
  typename T::S buffer[W];
  T::store(buffer, x);
  __builtin_memcpy(p, buffer, n * sizeof(*p));
}

template <class T>
inline F load_some(const typename T::S* p, int64_t n) {
  return n >= W ? T::load(p) : load_n<T>(p, n);
}

template <class T>
inline void store_some(typename T::S* p, F x, int64_t n) {
  if (n >= W) {
    T::store(p, x);
  } else {
    store_n<T>(p, x, n);
  }
}

template <class T>
const typename T::S* typed(const uint8_t* p) {
  return reinterpret_cast<const typename T::S*>(p);
}

template <class T>
typename T::S* typed(uint8_t* p) {
  return reinterpret_cast<typename T::S*>(p);
}

// ---- exp, sin and cos as in mlx/backend/cpu/simd/math.h

inline F exp_of(F x) {
  auto y = V::mul(x, V::set(1.442695f));
  // floor(y + 0.5), which MLX computes in double
  auto below = V::floor(y);
  auto ipart = V::select(V::ge(V::sub(y, below), V::set(0.5f)), V::add(below, V::set(1.0f)), below);
  auto f = V::sub(y, ipart);
  auto p = V::set(1.535336188319500e-4f);
  p = V::fma(p, f, V::set(1.339887440266574e-3f));
  p = V::fma(p, f, V::set(9.618437357674640e-3f));
  p = V::fma(p, f, V::set(5.550332471162809e-2f));
  p = V::fma(p, f, V::set(2.402264791363012e-1f));
  p = V::fma(p, f, V::set(6.931472028550421e-1f));
  p = V::fma(p, f, V::set(1.000000000000000f));
  auto r = V::mul(V::power_of_two(ipart), p);
  r = V::select(V::unordered(x), x, r);
  r = V::select(V::gt(x, V::set(88.0f)), V::set(kInf), r);
  return V::select(V::lt(x, V::set(-88.0f)), V::set(0.0f), r);
}

// |x| <= 2^23
inline void sincos_of(F in, F& sine, F& cosine) {
  auto negative = V::lt(in, V::set(0.0f));
  auto x = V::abs(in);
  auto octant = V::even_octant(V::mul(x, V::set(1.27323954473516f)));
  auto y = V::to_float(octant);
  auto swap = V::has_bit(octant, 2);
  x = V::fma(y, V::set(-0.78515625f), x);
  x = V::fma(y, V::set(-2.4187564849853515625e-4f), x);
  x = V::fma(y, V::set(-3.77489497744594108e-8f), x);
  auto z = V::mul(x, x);
  auto y1 = V::fma(z, V::set(2.443315711809948e-5f), V::set(-1.388731625493765e-3f));
  auto y2 = V::fma(z, V::set(-1.9515295891e-4f), V::set(8.3321608736e-3f));
  y1 = V::fma(y1, z, V::set(4.166664568298827e-2f));
  y2 = V::fma(y2, z, V::set(-1.6666654611e-1f));
  y1 = V::mul(y1, z);
  y2 = V::mul(y2, z);
  y1 = V::mul(y1, z);
  y2 = V::fma(x, y2, x);
  y1 = V::fma(z, V::set(-0.5f), y1);
  y1 = V::add(y1, V::set(1.0f));
  auto s = V::select(swap, y1, y2);
  auto c = V::select(swap, y2, y1);
  s = V::select(V::has_bit(octant, 4), V::neg(s), s);
  sine = V::select(negative, V::neg(s), s);
  cosine = V::select(V::has_bit(V::minus_two(octant), 4), c, V::neg(c));
}

// ---- rms norm

// Sums of squares of up to W rows, each in order: the rows are the lanes.
template <class T>
void sum_squares(const uint8_t* const* rows, int m, int64_t n, float* sums) {
  const typename T::S* r[W];
  for (int i = 0; i < W; i++) {
    r[i] = typed<T>(rows[i < m ? i : m - 1]);
  }
  auto acc = V::set(0.0f);
  for (int64_t j = 0; j < n; j += W) {
    int64_t count = n - j < W ? n - j : W;
    F tile[W];
    for (int i = 0; i < W; i++) {
      auto x = load_some<T>(r[i] + j, count);
      tile[i] = V::mul(x, x);
    }
    V::transpose(tile);
    if (count == W) {
      for (int i = 0; i < W; i++) {
        acc = V::add(acc, tile[i]);
      }
    } else {
      for (int i = 0; i < count; i++) {
        acc = V::add(acc, tile[i]);
      }
    }
  }
  V::store(sums, acc);
}

template <class T>
float sum_squares_row(const uint8_t* row, int64_t n) {
  auto x = typed<T>(row);
  float sum = 0;
  for (int64_t j = 0; j < n; j += W) {
    int64_t count = n - j < W ? n - j : W;
    float squares[W];
    auto v = load_some<T>(x + j, count);
    V::store(squares, V::mul(v, v));
    if (count == W) {
      for (int i = 0; i < W; i++) {
        sum += squares[i];
      }
    } else {
      for (int i = 0; i < count; i++) {
        sum += squares[i];
      }
    }
  }
  return sum;
}

template <class T>
void rms_scale_t(const uint8_t* const* rows, int m, int64_t n, float eps, float* scale) {
  alignas(64) float sums[W];
  if (m == 1) {
    sums[0] = sum_squares_row<T>(rows[0], n);
  } else {
    sum_squares<T>(rows, m, n, sums);
  }
  float inv_n = static_cast<float>(1.0 / static_cast<double>(n));
  for (int i = 0; i < m; i++) {
    scale[i] = 1.0f / __builtin_sqrtf(sums[i] * inv_n + eps);
  }
}

template <class T>
inline F normed(F x, F scale, F weight) {
  return T::round(V::mul(T::round(V::mul(x, scale)), weight));
}

template <class T>
void norm_row_t(const uint8_t* x_, const uint8_t* weight_, float scale, uint8_t* y_, int64_t n) {
  auto x = typed<T>(x_);
  auto weight = typed<T>(weight_);
  auto y = typed<T>(y_);
  auto s = V::set(scale);
  int64_t j = 0;
  for (; j + W <= n; j += W) {
    T::store(y + j, normed<T>(T::load(x + j), s, T::load(weight + j)));
  }
  if (j < n) {
    store_n<T>(y + j, normed<T>(load_n<T>(x + j, n - j), s, load_n<T>(weight + j, n - j)), n - j);
  }
}

// ---- rope

void inverse_frequencies(float step, int64_t half, float* freqs) {
  for (int64_t i = 0; i < half; i += W) {
    float x[W];
    for (int j = 0; j < W; j++) {
      x[j] = static_cast<float>(-(i + j)) * step;
    }
    store_some<TypeF32>(freqs + i, exp_of(V::load(x)), half - i);
  }
}

template <class T>
void rope_table_t(float position, const float* inv_freqs, const RopeTable& table) {
  auto p = V::set(position);
  for (int64_t i = 0; i < table.half; i += W) {
    auto theta = V::mul(p, load_some<TypeF32>(inv_freqs + i, table.half - i));
    F s, c;
    if (V::any(V::gt(V::abs(theta), V::set(8388608.0f)))) {
      float t[W], ss[W], cc[W];
      V::store(t, theta);
      sincos_of(V::select(V::gt(V::abs(theta), V::set(8388608.0f)), V::set(0.0f), theta), s, c);
      V::store(ss, s);
      V::store(cc, c);
      for (int j = 0; j < W; j++) {
        if (__builtin_fabsf(t[j]) > 8388608.0f) {
          ss[j] = ::sinf(t[j]);
          cc[j] = ::cosf(t[j]);
        }
      }
      s = V::load(ss);
      c = V::load(cc);
    } else {
      sincos_of(theta, s, c);
    }
    V::store(table.sin + i, T::round(s));
    V::store(table.cos + i, T::round(c));
  }
}

template <class T>
void norm_rope_row_t(
    const uint8_t* x_,
    const uint8_t* weight_,
    float scale,
    const RopeTable& table,
    uint8_t* y_,
    int64_t dim,
    float* buffer) {
  auto x = typed<T>(x_);
  auto weight = typed<T>(weight_);
  auto y = typed<T>(y_);
  auto s = V::set(scale);
  int64_t half = table.half;
  for (int64_t j = 0; j < dim; j += W) {
    int64_t count = dim - j;
    auto v = load_some<T>(x + j, count);
    if (weight_) {
      v = normed<T>(v, s, load_some<T>(weight + j, count));
    }
    V::store(buffer + j, v);
  }
  const float* x1 = buffer;
  const float* x2 = buffer + half;
  if (table.traditional) {
    float* even = buffer + dim + kPad;
    float* odd = even + half + kMaxLanes;
    for (int64_t i = 0; i < half; i++) {
      even[i] = buffer[2 * i];
      odd[i] = buffer[2 * i + 1];
    }
    x1 = even;
    x2 = odd;
  }
  for (int64_t i = 0; i < half; i += W) {
    int64_t count = half - i;
    auto a = V::load(x1 + i);
    auto b = V::load(x2 + i);
    auto c = V::load(table.cos + i);
    auto d = V::load(table.sin + i);
    auto first = V::sub(T::round(V::mul(a, c)), T::round(V::mul(b, d)));
    auto second = V::add(T::round(V::mul(a, d)), T::round(V::mul(b, c)));
    if (!table.traditional) {
      store_some<T>(y + i, first, count);
      store_some<T>(y + half + i, second, count);
    } else {
      typename T::S lo[W], hi[W];
      T::store(lo, first);
      T::store(hi, second);
      for (int64_t j = 0; j < W && j < count; j++) {
        y[2 * (i + j)] = lo[j];
        y[2 * (i + j) + 1] = hi[j];
      }
    }
  }
  for (int64_t j = 2 * half; j < dim; j += W) {
    store_some<T>(y + j, V::load(buffer + j), dim - j);
  }
}

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

// Largest of n values, NaN when there is one. Lanes past n do not count.
inline float maximum_of(const float* x, int64_t n) {
  auto best = V::set(-kInf);
  auto nan = V::unordered(best);
  int64_t j = 0;
  for (; j + W <= n; j += W) {
    auto v = V::load(x + j);
    best = V::max(v, best);
    nan = V::either(nan, V::unordered(v));
  }
  alignas(64) float lanes[W];
  V::store(lanes, best);
  float m = -kInf;
  for (int i = 0; i < W; i++) {
    m = lanes[i] > m ? lanes[i] : m;
  }
  bool any_nan = V::any(nan);
  for (; j < n; j++) {
    any_nan |= x[j] != x[j];
    m = x[j] > m ? x[j] : m;
  }
  return any_nan ? kNaN : m;
}

// exp(score - max) of one row in place, scores rounded to the type first. x holds the raw products and has room for
// whole vectors.
template <class T>
void exp_row(float* x, int64_t n, bool blind) {
  for (int64_t j = 0; j < n; j += W) {
    V::store(x + j, blind ? smallest<T>() : T::round(V::load(x + j)));
  }
  auto max = V::set(maximum_of(x, n));
  for (int64_t j = 0; j < n; j += W) {
    V::store(x + j, exp_of(V::sub(V::load(x + j), max)));
  }
}

// Sums of x[i][0 .. n[i] - 1], each in order; G chains hide the latency of one addition.
template <int G>
void sums_in_order(const float* x, int64_t stride, const int64_t* n, float* sums) {
  float s[G] = {};
  int64_t common = n[0];
  for (int i = 1; i < G; i++) {
    common = n[i] < common ? n[i] : common;
  }
  for (int64_t j = 0; j < common; j++) {
    for (int i = 0; i < G; i++) {
      s[i] += x[i * stride + j];
    }
  }
  for (int i = 0; i < G; i++) {
    for (int64_t j = common; j < n[i]; j++) {
      s[i] += x[i * stride + j];
    }
    sums[i] = s[i];
  }
}

// Rows of scores in place: softmax over the first n[i] of each, rounded to the type; zeros up to padded.
template <class T>
void softmax_rows(float* x, int64_t stride, int m, const int64_t* n, int blind, int64_t padded) {
  float sums[kMaxQueries];
  for (int i = 0; i < m; i++) {
    exp_row<T>(x + i * stride, n[i], i < blind);
  }
  int i = 0;
  for (; i + 8 <= m; i += 8) {
    sums_in_order<8>(x + i * stride, stride, n + i, sums + i);
  }
  for (; i < m; i++) {
    sums_in_order<1>(x + i * stride, stride, n + i, sums + i);
  }
  for (i = 0; i < m; i++) {
    float* row = x + i * stride;
    auto normalizer = V::set(1 / sums[i]);
    for (int64_t j = 0; j < n[i]; j += W) {
      V::store(row + j, T::round(V::mul(V::load(row + j), normalizer)));
    }
    __builtin_memset(row + n[i], 0, (padded - n[i]) * sizeof(float));
  }
}

struct Scratch {
  int64_t q_stride;
  int64_t score_stride;
  int64_t value_stride;
  float* q;
  float* scores;
  float* out;
  float* kt;
  float* vf;
  float* max;
  float* sum;

  Scratch(const AttentionTask& t, bool exact) {
    q_stride = round_up(t.head_dim, kMaxLanes);
    score_stride = exact ? round_up(t.num_keys, kKeyBlock) : kKeyBlock;
    value_stride = round_up(t.value_dim, kPad);
    kt = t.scratch;
    vf = kt + kKeyBlock * t.head_dim;
    q = vf + kKeyBlock * value_stride;
    scores = q + t.num_rows * q_stride;
    out = scores + t.num_rows * score_stride;
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

template <class T>
void attention_exact_t(const AttentionTask& t) {
  Scratch s(t, true);
  auto scale = T::round(V::set(t.scale));
  for (int i = 0; i < t.num_rows; i++) {
    for (int64_t d = 0; d < t.head_dim; d += W) {
      auto q = load_some<T>(typed<T>(t.q[i]) + d, t.head_dim - d);
      V::store(s.q + i * s.q_stride + d, T::round(V::mul(scale, q)));
    }
  }
  int64_t end = most_visible(t);
  for (int64_t k0 = 0; k0 < end; k0 += kKeyBlock) {
    int64_t keys = end - k0 < kKeyBlock ? end - k0 : kKeyBlock;
    int row = first_row_that_sees(t, k0);
    pack_keys<T>(t.k + k0 * t.k_row_bytes, t.k_row_bytes, keys, t.head_dim, s.kt);
    product<false>(
        s.q + row * s.q_stride,
        s.q_stride,
        s.kt,
        kKeyBlock,
        s.scores + row * s.score_stride + k0,
        s.score_stride,
        t.num_rows - row,
        round_up(keys, 2 * W),
        t.head_dim,
        false);
  }
  softmax_rows<T>(s.scores, s.score_stride, t.num_rows, t.visible, t.blind, round_up(end, kKeyBlock));
  for (int64_t k0 = 0; k0 < end; k0 += kKeyBlock) {
    int64_t keys = end - k0 < kKeyBlock ? end - k0 : kKeyBlock;
    int row = first_row_that_sees(t, k0);
    widen_values<T>(t.v + k0 * t.v_row_bytes, t.v_row_bytes, keys, t.value_dim, s.vf, s.value_stride);
    product<false>(
        s.scores + row * s.score_stride + k0,
        s.score_stride,
        s.vf,
        s.value_stride,
        s.out + row * s.value_stride,
        s.value_stride,
        t.num_rows - row,
        s.value_stride,
        keys,
        k0 > 0);
  }
  for (int i = 0; i < t.num_rows; i++) {
    for (int64_t d = 0; d < t.value_dim; d += W) {
      store_some<T>(typed<T>(t.out[i]) + d, V::load(s.out + i * s.value_stride + d), t.value_dim - d);
    }
  }
}

inline float sum_of(F x) {
  alignas(64) float lanes[W];
  V::store(lanes, x);
  for (int step = W / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; i++) {
      lanes[i] += lanes[i + step];
    }
  }
  return lanes[0];
}

// Softmax over blocks of keys with a running maximum and sum (arXiv:2205.14135).
template <class T>
void attention_fast_t(const AttentionTask& t) {
  Scratch s(t, false);
  auto scale = V::set(t.scale);
  for (int i = 0; i < t.num_rows; i++) {
    for (int64_t d = 0; d < t.head_dim; d += W) {
      auto q = load_some<T>(typed<T>(t.q[i]) + d, t.head_dim - d);
      V::store(s.q + i * s.q_stride + d, V::mul(scale, q));
    }
    s.max[i] = -kInf;
    s.sum[i] = 0;
  }
  int64_t end = most_visible(t);
  for (int64_t k0 = 0; k0 < end; k0 += kKeyBlock) {
    int64_t keys = end - k0 < kKeyBlock ? end - k0 : kKeyBlock;
    int row = first_row_that_sees(t, k0);
    pack_keys<T>(t.k + k0 * t.k_row_bytes, t.k_row_bytes, keys, t.head_dim, s.kt);
    product<true>(
        s.q + row * s.q_stride,
        s.q_stride,
        s.kt,
        kKeyBlock,
        s.scores + row * s.score_stride,
        s.score_stride,
        t.num_rows - row,
        round_up(keys, 2 * W),
        t.head_dim,
        false);
    for (int i = row; i < t.num_rows; i++) {
      float* x = s.scores + i * s.score_stride;
      int64_t n = t.visible[i] - k0 < keys ? t.visible[i] - k0 : keys;
      if (n <= 0) {
        __builtin_memset(x, 0, kKeyBlock * sizeof(float));
        continue;
      }
      if (i < t.blind) {
        __builtin_memset(x, 0, n * sizeof(float));
      }
      float max = maximum_of(x, n);
      max = max > s.max[i] || max != max ? max : s.max[i];
      auto m = V::set(max);
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
      if (k0 > 0) {
        alignas(64) float lanes[W];
        V::store(lanes, exp_of(V::set(s.max[i] - max)));
        keep = s.max[i] == max ? 1 : lanes[0];
        if (keep != 1) {
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
        k0 > 0);
  }
  for (int i = 0; i < t.num_rows; i++) {
    auto norm = V::set(1 / s.sum[i]);
    for (int64_t d = 0; d < t.value_dim; d += W) {
      auto o = V::mul(V::load(s.out + i * s.value_stride + d), norm);
      store_some<T>(typed<T>(t.out[i]) + d, o, t.value_dim - d);
    }
  }
}

// ---- greedy token

template <class T>
float maximum_t(const uint8_t* x_, int64_t n) {
  auto x = typed<T>(x_);
  F best[4];
  for (auto& b : best) {
    b = V::set(-kInf);
  }
  auto nan = V::unordered(best[0]);
  int64_t j = 0;
  for (; j + 4 * W <= n; j += 4 * W) {
    for (int i = 0; i < 4; i++) {
      auto v = T::load(x + j + i * W);
      best[i] = V::max(v, best[i]);
      nan = V::either(nan, V::unordered(v));
    }
  }
  alignas(64) float tail[4 * W];
  int64_t rest = n - j;
  for (int64_t i = 0; i < rest; i += W) {
    V::store(tail + i, load_some<T>(x + j + i, rest - i));
  }
  best[0] = V::max(V::max(best[0], best[1]), V::max(best[2], best[3]));
  alignas(64) float lanes[W];
  V::store(lanes, best[0]);
  float m = maximum_of(tail, rest);
  float lane_max = maximum_of(lanes, W);
  return V::any(nan) || m != m ? kNaN : lane_max > m ? lane_max : m;
}

template <class T>
float exp_sum_in_order_t(const uint8_t* x_, int64_t n, float max) {
  auto x = typed<T>(x_);
  auto m = V::set(max);
  float sum = 0;
  int64_t j = 0;
  for (; j + W <= n; j += W) {
    alignas(64) float e[W];
    V::store(e, exp_of(V::sub(T::load(x + j), m)));
    for (int i = 0; i < W; i++) {
      sum += e[i];
    }
  }
  if (j < n) {
    alignas(64) float e[W];
    V::store(e, exp_of(V::sub(load_n<T>(x + j, n - j), m)));
    for (int i = 0; i < n - j; i++) {
      sum += e[i];
    }
  }
  return sum;
}

template <class T>
float exp_sum_t(const uint8_t* x_, int64_t n, float max) {
  auto x = typed<T>(x_);
  auto m = V::set(max);
  F sum[2] = {V::set(0.0f), V::set(0.0f)};
  int64_t j = 0;
  for (; j + 2 * W <= n; j += 2 * W) {
    sum[0] = V::add(sum[0], exp_of(V::sub(T::load(x + j), m)));
    sum[1] = V::add(sum[1], exp_of(V::sub(T::load(x + j + W), m)));
  }
  return sum_of(V::add(sum[0], sum[1])) + exp_sum_in_order_t<T>(x_ + j * sizeof(*x), n - j, max);
}

template <class T>
int64_t first_reaching_t(const uint8_t* x_, int64_t n, float c, float target) {
  auto x = typed<T>(x_);
  auto vc = V::set(c);
  auto vt = V::set(target);
  for (int64_t j = 0; j < n; j += W) {
    int64_t count = n - j;
    auto d = T::round(V::sub(load_some<T>(x + j, count), vc));
    if (V::any(V::ge(d, vt))) {
      alignas(64) float lanes[W];
      V::store(lanes, d);
      for (int i = 0; i < W && i < count; i++) {
        if (lanes[i] >= target) {
          return j + i;
        }
      }
    }
  }
  return n;
}

// ---- by type

void rms_scale(DType t, const uint8_t* const* rows, int m, int64_t n, float eps, float* scale) {
  switch (t) {
    case DType::F32:
      return rms_scale_t<TypeF32>(rows, m, n, eps, scale);
    case DType::F16:
      return rms_scale_t<TypeF16>(rows, m, n, eps, scale);
    case DType::BF16:
      return rms_scale_t<TypeBF16>(rows, m, n, eps, scale);
  }
}

void norm_row(DType t, const uint8_t* x, const uint8_t* weight, float scale, uint8_t* y, int64_t n) {
  switch (t) {
    case DType::F32:
      return norm_row_t<TypeF32>(x, weight, scale, y, n);
    case DType::F16:
      return norm_row_t<TypeF16>(x, weight, scale, y, n);
    case DType::BF16:
      return norm_row_t<TypeBF16>(x, weight, scale, y, n);
  }
}

void rope_table(DType t, float position, const float* inv_freqs, const RopeTable& table) {
  switch (t) {
    case DType::F32:
      return rope_table_t<TypeF32>(position, inv_freqs, table);
    case DType::F16:
      return rope_table_t<TypeF16>(position, inv_freqs, table);
    case DType::BF16:
      return rope_table_t<TypeBF16>(position, inv_freqs, table);
  }
}

void norm_rope_row(
    DType t,
    const uint8_t* x,
    const uint8_t* weight,
    float scale,
    const RopeTable& table,
    uint8_t* y,
    int64_t dim,
    float* buffer) {
  switch (t) {
    case DType::F32:
      return norm_rope_row_t<TypeF32>(x, weight, scale, table, y, dim, buffer);
    case DType::F16:
      return norm_rope_row_t<TypeF16>(x, weight, scale, table, y, dim, buffer);
    case DType::BF16:
      return norm_rope_row_t<TypeBF16>(x, weight, scale, table, y, dim, buffer);
  }
}

void attention_exact(const AttentionTask& task) {
  switch (task.dtype) {
    case DType::F32:
      return attention_exact_t<TypeF32>(task);
    case DType::F16:
      return attention_exact_t<TypeF16>(task);
    case DType::BF16:
      return attention_exact_t<TypeBF16>(task);
  }
}

void attention_fast(const AttentionTask& task) {
  switch (task.dtype) {
    case DType::F32:
      return attention_fast_t<TypeF32>(task);
    case DType::F16:
      return attention_fast_t<TypeF16>(task);
    case DType::BF16:
      return attention_fast_t<TypeBF16>(task);
  }
}

float maximum(DType t, const uint8_t* x, int64_t n) {
  switch (t) {
    case DType::F32:
      return maximum_t<TypeF32>(x, n);
    case DType::F16:
      return maximum_t<TypeF16>(x, n);
    case DType::BF16:
      return maximum_t<TypeBF16>(x, n);
  }
  return kNaN;
}

float exp_sum_in_order(DType t, const uint8_t* x, int64_t n, float max) {
  switch (t) {
    case DType::F32:
      return exp_sum_in_order_t<TypeF32>(x, n, max);
    case DType::F16:
      return exp_sum_in_order_t<TypeF16>(x, n, max);
    case DType::BF16:
      return exp_sum_in_order_t<TypeBF16>(x, n, max);
  }
  return kNaN;
}

float exp_sum(DType t, const uint8_t* x, int64_t n, float max) {
  switch (t) {
    case DType::F32:
      return exp_sum_t<TypeF32>(x, n, max);
    case DType::F16:
      return exp_sum_t<TypeF16>(x, n, max);
    case DType::BF16:
      return exp_sum_t<TypeBF16>(x, n, max);
  }
  return kNaN;
}

int64_t first_reaching(DType t, const uint8_t* x, int64_t n, float c, float target) {
  switch (t) {
    case DType::F32:
      return first_reaching_t<TypeF32>(x, n, c, target);
    case DType::F16:
      return first_reaching_t<TypeF16>(x, n, c, target);
    case DType::BF16:
      return first_reaching_t<TypeBF16>(x, n, c, target);
  }
  return n;
}

constexpr StepKernels make_kernels(const char* isa) {
  return {
      isa,
      W,
      rms_scale,
      norm_row,
      inverse_frequencies,
      rope_table,
      norm_rope_row,
      attention_exact,
      attention_fast,
      maximum,
      exp_sum_in_order,
      exp_sum,
      first_reaching};
}

} // namespace
} // namespace zmlx::cpu
