// Number types and functions over a vector type V.
//
// V has W lanes: F (floats), M (mask); load, store, set, add, sub, mul, fma, div, sqrt, floor, max, lt, ge, gt,
// unordered, select, power_of_two, load_bf16, store_bf16, round_bf16, split_bf16 (two values of a 32-bit lane), the same
// for f16, transpose of a W x W tile, and integers I for sincos.

#pragma once

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

// ---- reductions

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

} // namespace
} // namespace zmlx::cpu
