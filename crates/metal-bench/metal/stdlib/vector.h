// vec<T, N> for N of 2, 3 and 4, element by element. Swizzles of more than one element are left out.

#pragma once

#include "traits.h"

namespace metal {

template <typename T, int N>
struct vec;

namespace detail {
template <typename T>
struct is_vec : false_type {};
template <typename T, int N>
struct is_vec<vec<T, N>> : true_type {};
template <typename T>
concept Scalar = !is_vec<T>::value && requires(T x) { float(x); };
} // namespace detail

#define BENCH_INDEXED             \
  constexpr T& operator[](int i) { \
    return e[i];                  \
  }                               \
  constexpr T operator[](int i) const { \
    return e[i];                  \
  }

template <typename T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T e[2];
    struct {
      T x, y;
    };
  };
  vec() = default;
  explicit constexpr vec(T s) : e{s, s} {}
  constexpr vec(T x, T y) : e{x, y} {}
  template <typename U>
  explicit constexpr vec(vec<U, 2> v) : e{T(v[0]), T(v[1])} {}
  BENCH_INDEXED
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T e[4];
    struct {
      T x, y, z;
    };
  };
  vec() = default;
  explicit constexpr vec(T s) : e{s, s, s, T(0)} {}
  constexpr vec(T x, T y, T z) : e{x, y, z, T(0)} {}
  template <typename U>
  explicit constexpr vec(vec<U, 3> v) : e{T(v[0]), T(v[1]), T(v[2]), T(0)} {}
  BENCH_INDEXED
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T e[4];
    struct {
      T x, y, z, w;
    };
  };
  vec() = default;
  explicit constexpr vec(T s) : e{s, s, s, s} {}
  constexpr vec(T x, T y, T z, T w) : e{x, y, z, w} {}
  template <typename U>
  explicit constexpr vec(vec<U, 4> v) : e{T(v[0]), T(v[1]), T(v[2]), T(v[3])} {}
  BENCH_INDEXED
};
#undef BENCH_INDEXED

#define BENCH_VECTOR(op)                                                   \
  template <typename T, int N>                                             \
  constexpr vec<T, N> operator op(vec<T, N> a, vec<T, N> b) {              \
    for (int i = 0; i < N; i++) {                                          \
      a[i] = T(a[i] op b[i]);                                              \
    }                                                                      \
    return a;                                                              \
  }                                                                        \
  template <typename T, int N, detail::Scalar S>                           \
  constexpr vec<T, N> operator op(vec<T, N> a, S b) {                      \
    return a op vec<T, N>(T(b));                                           \
  }                                                                        \
  template <typename T, int N, detail::Scalar S>                           \
  constexpr vec<T, N> operator op(S a, vec<T, N> b) {                      \
    return vec<T, N>(T(a)) op b;                                           \
  }                                                                        \
  template <typename T, int N, typename B>                                 \
  constexpr vec<T, N>& operator op##=(vec<T, N>& a, B b) {                 \
    return a = a op b;                                                     \
  }
BENCH_VECTOR(+)
BENCH_VECTOR(-)
BENCH_VECTOR(*)
BENCH_VECTOR(/)
BENCH_VECTOR(&)
BENCH_VECTOR(|)
BENCH_VECTOR(^)
BENCH_VECTOR(<<)
BENCH_VECTOR(>>)
#undef BENCH_VECTOR

template <typename T, int N>
constexpr T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; i++) {
    sum = T(sum + a[i] * b[i]);
  }
  return sum;
}

template <typename T, size_t N>
struct array {
  T elements[N];

  constexpr T& operator[](size_t i) {
    return elements[i];
  }
  constexpr const T& operator[](size_t i) const {
    return elements[i];
  }
};

#define BENCH_NAMES(T, name)  \
  using name##2 = vec<T, 2>;  \
  using name##3 = vec<T, 3>;  \
  using name##4 = vec<T, 4>;
BENCH_NAMES(bool, bool)
BENCH_NAMES(int8_t, char)
BENCH_NAMES(uint8_t, uchar)
BENCH_NAMES(int16_t, short)
BENCH_NAMES(uint16_t, ushort)
BENCH_NAMES(int32_t, int)
BENCH_NAMES(uint32_t, uint)
BENCH_NAMES(int64_t, long)
BENCH_NAMES(uint64_t, ulong)
BENCH_NAMES(half, half)
BENCH_NAMES(bfloat, bfloat)
BENCH_NAMES(float, float)
#undef BENCH_NAMES

} // namespace metal
