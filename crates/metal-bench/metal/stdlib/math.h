// metal_math, metal_integer, metal_common and metal_relational, for what kernels use of them.
//
// Which bits exp, cos or rsqrt give is the GPU's business, and three variants may differ there: precise (what plain names
// mean with -fno-fast-math), fast, and those of half. They differ here as well, in the last bit of about every other
// result, so that a kernel which takes another variant than stock gives other bits.

#pragma once

#include "vector.h"

#define NAN (__builtin_nanf(""))
#define INFINITY (__builtin_inff())
#define M_E_F 2.71828182845904523536f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
#define M_LOG2E_F 1.44269504088896340736f
#define M_PI_F 3.14159265358979323846f
#define M_SQRT1_2_F 0.707106781186547524401f
#define M_SQRT2_F 1.41421356237309504880f

// the variants, as MLX's bfloat functions hand them on
constexpr int __METAL_MAYBE_FAST_MATH__ = 0;
constexpr int __METAL_PRECISE_MATH__ = 0;
constexpr int __METAL_FAST_MATH__ = 1;

namespace bench {

template <typename T>
constexpr T toward_zero(double exact);

template <>
inline float toward_zero<float>(double exact) {
  float near = float(exact);
  bool outward = exact > 0 ? near > exact : near < exact;
  return outward && near - near == 0 ? bit_cast<float>(bit_cast<uint32_t>(near) - 1) : near;
}

template <>
inline half toward_zero<half>(double exact) {
  half near(float{float(exact)});
  bool outward = exact > 0 ? double(float(near)) > exact : double(float(near)) < exact;
  return outward && (near.bits & 0x7c00) != 0x7c00 ? half::of_bits(near.bits - 1) : near;
}

template <typename T>
concept Float = std::is_same_v<T, float>;

} // namespace bench

// Functions whose result depends on the variant; `wide` is the value in double, `near` in float.
#define BENCH_TRANSCENDENTAL(name, wide, near)             \
  inline float __metal_##name(float x, int fast) {             \
    return fast ? bench::toward_zero<float>(wide) : near;     \
  }                                                            \
  namespace metal {                                            \
  inline float name(float x) {                                 \
    return __metal_##name(x, __METAL_MAYBE_FAST_MATH__);       \
  }                                                            \
  inline half name(half h) {                                   \
    float x = h;                                               \
    return bench::toward_zero<half>(wide);                    \
  }                                                            \
  namespace precise {                                          \
  inline float name(float x) {                                 \
    return __metal_##name(x, __METAL_PRECISE_MATH__);          \
  }                                                            \
  inline half name(half h) {                                   \
    return half(__metal_##name(h, __METAL_PRECISE_MATH__));    \
  }                                                            \
  }                                                            \
  namespace fast {                                             \
  inline float name(float x) {                                 \
    return __metal_##name(x, __METAL_FAST_MATH__);             \
  }                                                            \
  inline half name(half h) {                                   \
    float x = h;                                               \
    return bench::toward_zero<half>(wide);                    \
  }                                                            \
  }                                                            \
  }

BENCH_TRANSCENDENTAL(acos, __builtin_acos(x), __builtin_acosf(x))
BENCH_TRANSCENDENTAL(acosh, __builtin_acosh(x), __builtin_acoshf(x))
BENCH_TRANSCENDENTAL(asin, __builtin_asin(x), __builtin_asinf(x))
BENCH_TRANSCENDENTAL(asinh, __builtin_asinh(x), __builtin_asinhf(x))
BENCH_TRANSCENDENTAL(atan, __builtin_atan(x), __builtin_atanf(x))
BENCH_TRANSCENDENTAL(atanh, __builtin_atanh(x), __builtin_atanhf(x))
BENCH_TRANSCENDENTAL(cos, __builtin_cos(x), __builtin_cosf(x))
BENCH_TRANSCENDENTAL(cosh, __builtin_cosh(x), __builtin_coshf(x))
BENCH_TRANSCENDENTAL(cospi, __builtin_cos(3.14159265358979323846 * x), float(__builtin_cos(3.14159265358979323846 * x)))
BENCH_TRANSCENDENTAL(exp, __builtin_exp(x), __builtin_expf(x))
BENCH_TRANSCENDENTAL(exp10, __builtin_pow(10.0, x), float(__builtin_pow(10.0, x)))
BENCH_TRANSCENDENTAL(exp2, __builtin_exp2(x), __builtin_exp2f(x))
BENCH_TRANSCENDENTAL(log, __builtin_log(x), __builtin_logf(x))
BENCH_TRANSCENDENTAL(log10, __builtin_log10(x), __builtin_log10f(x))
BENCH_TRANSCENDENTAL(log2, __builtin_log2(x), __builtin_log2f(x))
BENCH_TRANSCENDENTAL(rsqrt, 1.0 / __builtin_sqrt(x), float(1.0 / __builtin_sqrt(x)))
BENCH_TRANSCENDENTAL(sin, __builtin_sin(x), __builtin_sinf(x))
BENCH_TRANSCENDENTAL(sinh, __builtin_sinh(x), __builtin_sinhf(x))
BENCH_TRANSCENDENTAL(sinpi, __builtin_sin(3.14159265358979323846 * x), float(__builtin_sin(3.14159265358979323846 * x)))
BENCH_TRANSCENDENTAL(sqrt, __builtin_sqrt(x), __builtin_sqrtf(x))
BENCH_TRANSCENDENTAL(tan, __builtin_tan(x), __builtin_tanf(x))
BENCH_TRANSCENDENTAL(tanh, __builtin_tanh(x), __builtin_tanhf(x))
BENCH_TRANSCENDENTAL(tanpi, __builtin_tan(3.14159265358979323846 * x), float(__builtin_tan(3.14159265358979323846 * x)))
#undef BENCH_TRANSCENDENTAL

#define BENCH_TRANSCENDENTAL_2(name, wide, near)                   \
  inline float __metal_##name(float x, float y, int fast) {            \
    return fast ? bench::toward_zero<float>(wide) : near;             \
  }                                                                    \
  namespace metal {                                                    \
  inline float name(float x, float y) {                                \
    return __metal_##name(x, y, __METAL_MAYBE_FAST_MATH__);            \
  }                                                                    \
  inline half name(half x, half y) {                                   \
    return half(__metal_##name(float(x), float(y), 1));                \
  }                                                                    \
  namespace precise {                                                  \
  inline float name(float x, float y) {                                \
    return __metal_##name(x, y, __METAL_PRECISE_MATH__);               \
  }                                                                    \
  }                                                                    \
  namespace fast {                                                     \
  inline float name(float x, float y) {                                \
    return __metal_##name(x, y, __METAL_FAST_MATH__);                  \
  }                                                                    \
  }                                                                    \
  }
BENCH_TRANSCENDENTAL_2(atan2, __builtin_atan2(x, y), __builtin_atan2f(x, y))
BENCH_TRANSCENDENTAL_2(divide, double(x) / y, x / y)
BENCH_TRANSCENDENTAL_2(fmod, __builtin_fmod(x, y), __builtin_fmodf(x, y))
BENCH_TRANSCENDENTAL_2(pow, __builtin_pow(x, y), __builtin_powf(x, y))
BENCH_TRANSCENDENTAL_2(powr, __builtin_pow(x, y), __builtin_powf(x, y))
#undef BENCH_TRANSCENDENTAL_2

// Functions with one right answer.
#define BENCH_EXACT(name, value)             \
  inline float __metal_##name(float x, int) { \
    return value;                            \
  }                                          \
  namespace metal {                          \
  inline float name(float x) {               \
    return value;                            \
  }                                          \
  inline half name(half h) {                 \
    float x = h;                             \
    return half(value);                      \
  }                                          \
  namespace precise {                        \
  using metal::name;                         \
  }                                          \
  namespace fast {                           \
  using metal::name;                         \
  }                                          \
  }
BENCH_EXACT(ceil, __builtin_ceilf(x))
BENCH_EXACT(fabs, __builtin_fabsf(x))
BENCH_EXACT(floor, __builtin_floorf(x))
BENCH_EXACT(fract, (x - __builtin_floorf(x)))
BENCH_EXACT(rint, __builtin_rintf(x))
BENCH_EXACT(round, __builtin_roundf(x))
BENCH_EXACT(sign, (x > 0 ? 1.0f : x < 0 ? -1.0f : x))
BENCH_EXACT(trunc, __builtin_truncf(x))
#undef BENCH_EXACT

#define BENCH_EXACT_2(name, value)                  \
  inline float __metal_##name(float x, float y, int) { \
    return value;                                   \
  }                                                 \
  namespace metal {                                 \
  inline float name(float x, float y) {             \
    return value;                                   \
  }                                                 \
  inline half name(half a, half b) {                \
    float x = a, y = b;                             \
    return half(value);                             \
  }                                                 \
  }
BENCH_EXACT_2(copysign, __builtin_copysignf(x, y))
BENCH_EXACT_2(fdim, __builtin_fdimf(x, y))
BENCH_EXACT_2(fmax, __builtin_fmaxf(x, y))
BENCH_EXACT_2(fmin, __builtin_fminf(x, y))
#undef BENCH_EXACT_2

inline float __metal_fma(float x, float y, float z) {
  return __builtin_fmaf(x, y, z);
}
inline float __metal_fmax3(float x, float y, float z, int) {
  return __builtin_fmaxf(__builtin_fmaxf(x, y), z);
}
inline float __metal_fmin3(float x, float y, float z, int) {
  return __builtin_fminf(__builtin_fminf(x, y), z);
}
inline float __metal_fmedian3(float x, float y, float z, int) {
  return __builtin_fmaxf(__builtin_fminf(x, y), __builtin_fminf(__builtin_fmaxf(x, y), z));
}
inline float __metal_frexp(float x, int* e) {
  return __builtin_frexpf(x, e);
}
inline float __metal_ldexp(float x, int k, int) {
  return __builtin_ldexpf(x, k);
}
inline float __metal_nextafter(float x, float y) {
  return __builtin_nextafterf(x, y);
}
inline float __metal_sincos(float x, float* c, int fast) {
  *c = __metal_cos(x, fast);
  return __metal_sin(x, fast);
}

namespace metal {

inline float abs(float x) {
  return __builtin_fabsf(x);
}
inline half abs(half x) {
  return half::of_bits(x.bits & 0x7fff);
}
template <bench::Integer I>
constexpr I abs(I x) {
  return x < 0 ? I(-x) : x;
}
namespace precise {
using metal::abs;
}
namespace fast {
using metal::abs;
}

inline float fma(float x, float y, float z) {
  return __builtin_fmaf(x, y, z);
}
inline half fma(half x, half y, half z) {
  // the product of two halves is exact in double, and so is nearly every sum
  return half(float(double(float(x)) * float(y) + float(z)));
}
inline float frexp(float x, int& e) {
  return __builtin_frexpf(x, &e);
}
inline float ldexp(float x, int k) {
  return __builtin_ldexpf(x, k);
}
inline half ldexp(half x, int k) {
  return half(__builtin_ldexpf(x, k));
}
inline float nextafter(float x, float y) {
  return __builtin_nextafterf(x, y);
}

template <typename T>
concept Number = is_floating_point_v<T> || is_integral_v<T>;

// Metal overloads min and max for each type, so operands of two types find one only by promotion.
template <Number A, Number B>
struct Common {
  using type = decltype(A() + B());
  static_assert(is_floating_point_v<type> || is_signed_v<decltype(+A())> == is_signed_v<decltype(+B())>,
                "min and max of a signed and an unsigned number are ambiguous");
};
template <Number A>
struct Common<A, A> {
  using type = A;
};
template <Number A, Number B>
constexpr typename Common<A, B>::type min(A a, B b) {
  using T = typename Common<A, B>::type;
  return T(b) < T(a) ? T(b) : T(a);
}
template <Number A, Number B>
constexpr typename Common<A, B>::type max(A a, B b) {
  using T = typename Common<A, B>::type;
  return T(a) < T(b) ? T(b) : T(a);
}
template <typename T, int N>
constexpr vec<T, N> min(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; i++) {
    a[i] = min(a[i], b[i]);
  }
  return a;
}
template <typename T, int N>
constexpr vec<T, N> max(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; i++) {
    a[i] = max(a[i], b[i]);
  }
  return a;
}
template <Number T>
constexpr T clamp(T x, type_identity_t<T> lo, type_identity_t<T> hi) {
  return min(max(x, lo), hi);
}
template <typename T>
constexpr T select(T a, T b, bool c) {
  return c ? b : a;
}

inline bool isnan(float x) {
  return x != x;
}
inline bool isinf(float x) {
  return __builtin_isinf(x);
}
inline bool isfinite(float x) {
  return __builtin_isfinite(x);
}
inline bool isnormal(float x) {
  return __builtin_isnormal(x);
}
inline bool signbit(float x) {
  return __builtin_signbit(x);
}

inline int popcount(uint32_t x) {
  return __builtin_popcount(x);
}
inline uint32_t clz(uint32_t x) {
  return x ? __builtin_clz(x) : 32;
}
inline uint32_t ctz(uint32_t x) {
  return x ? __builtin_ctz(x) : 32;
}
inline uint32_t mulhi(uint32_t a, uint32_t b) {
  return uint32_t((uint64_t(a) * b) >> 32);
}
inline uint64_t mulhi(uint64_t a, uint64_t b) {
  return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64);
}

} // namespace metal
