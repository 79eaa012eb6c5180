// half and bfloat: every operation computes in float and rounds to nearest even once, which for + - * / of 11 and 8 bits
// is the result of arithmetic in the type itself. What converts implicitly follows the Metal language: half both ways,
// bfloat only to float.

#pragma once

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

namespace bench {

template <typename To, typename From>
constexpr To bit_cast(const From& x) {
  return __builtin_bit_cast(To, x);
}

struct Binary16 {
  static constexpr bool kImplicitFromFloat = true;

  static constexpr float widen(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16;
    uint32_t exponent = (h >> 10) & 31;
    uint32_t mantissa = h & 1023;
    if (exponent == 0) {
      return bit_cast<float>(bit_cast<uint32_t>(float(mantissa) * 0x1p-24f) | sign);
    }
    uint32_t widened = exponent == 31 ? 0xff : exponent + 112;
    return bit_cast<float>(sign | (widened << 23) | (mantissa << 13));
  }

  static constexpr uint16_t narrow(float x) {
    uint32_t bits = bit_cast<uint32_t>(x);
    uint16_t sign = uint16_t((bits >> 16) & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
      return sign | 0x7e00;
    }
    if (magnitude >= 0x477ff000) {
      return sign | 0x7c00;
    }
    if (magnitude < 0x38800000) {
      // the last place of 0.5 is that of a denormal half: the addition rounds
      float sum = bit_cast<float>(magnitude) + 0.5f;
      return sign | uint16_t(bit_cast<uint32_t>(sum) - 0x3f000000);
    }
    magnitude += 0xfff + ((magnitude >> 13) & 1);
    return sign | uint16_t((magnitude >> 13) - (112 << 10));
  }
};

struct Brain16 {
  static constexpr bool kImplicitFromFloat = false;

  static constexpr float widen(uint16_t b) {
    return bit_cast<float>(uint32_t(b) << 16);
  }

  static constexpr uint16_t narrow(float x) {
    uint32_t bits = bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffff) > 0x7f800000) {
      return uint16_t(bits >> 16) | 0x40;
    }
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};

template <typename T>
concept Integer = std::is_integral_v<T>;

template <typename Format>
struct Narrow {
  uint16_t bits;

  Narrow() = default;
  explicit(!Format::kImplicitFromFloat) constexpr Narrow(float x) : bits(Format::narrow(x)) {}
  template <Integer I>
  constexpr Narrow(I x) : bits(Format::narrow(float(x))) {}
  template <typename Other>
  explicit constexpr Narrow(Narrow<Other> x) : bits(Format::narrow(float(x))) {}

  constexpr operator float() const {
    return Format::widen(bits);
  }

  static constexpr Narrow of_bits(uint16_t bits) {
    Narrow x(0);
    x.bits = bits;
    return x;
  }

  constexpr Narrow operator-() const {
    return of_bits(bits ^ 0x8000);
  }
  constexpr Narrow operator+() const {
    return *this;
  }
  Narrow& operator++() {
    return *this = Narrow(float(*this) + 1.0f);
  }
};

#define BENCH_ARITHMETIC(op)                                                           \
  template <typename F>                                                                \
  constexpr Narrow<F> operator op(Narrow<F> a, Narrow<F> b) {                          \
    return Narrow<F>(float(a) op float(b));                                            \
  }                                                                                    \
  template <typename F, Integer I>                                                     \
  constexpr Narrow<F> operator op(Narrow<F> a, I b) {                                  \
    return Narrow<F>(float(a) op float(Narrow<F>(b)));                                 \
  }                                                                                    \
  template <typename F, Integer I>                                                     \
  constexpr Narrow<F> operator op(I a, Narrow<F> b) {                                  \
    return Narrow<F>(float(Narrow<F>(a)) op float(b));                                 \
  }                                                                                    \
  template <typename F>                                                                \
  constexpr float operator op(Narrow<F> a, float b) {                                  \
    return float(a) op b;                                                              \
  }                                                                                    \
  template <typename F>                                                                \
  constexpr float operator op(float a, Narrow<F> b) {                                  \
    return a op float(b);                                                              \
  }                                                                                    \
  template <typename F, typename B>                                                    \
  constexpr Narrow<F>& operator op##=(Narrow<F>& a, B b) {                             \
    static_assert(F::kImplicitFromFloat || !std::is_same_v<B, float>,                  \
                  "a float does not become a bfloat without a cast");                  \
    return a = Narrow<F>(a op b);                                                      \
  }
BENCH_ARITHMETIC(+)
BENCH_ARITHMETIC(-)
BENCH_ARITHMETIC(*)
BENCH_ARITHMETIC(/)
#undef BENCH_ARITHMETIC

#define BENCH_COMPARISON(op)                                   \
  template <typename F>                                        \
  constexpr bool operator op(Narrow<F> a, Narrow<F> b) {       \
    return float(a) op float(b);                               \
  }                                                            \
  template <typename F, typename B>                            \
    requires std::is_arithmetic_v<B>                           \
  constexpr bool operator op(Narrow<F> a, B b) {               \
    return float(a) op float(b);                               \
  }                                                            \
  template <typename F, typename A>                            \
    requires std::is_arithmetic_v<A>                           \
  constexpr bool operator op(A a, Narrow<F> b) {               \
    return float(a) op float(b);                               \
  }
BENCH_COMPARISON(<)
BENCH_COMPARISON(<=)
BENCH_COMPARISON(>)
BENCH_COMPARISON(>=)
BENCH_COMPARISON(==)
BENCH_COMPARISON(!=)
#undef BENCH_COMPARISON

} // namespace bench

using half = bench::Narrow<bench::Binary16>;
using bfloat = bench::Narrow<bench::Brain16>;
using uchar = uint8_t;
using ushort = uint16_t;
using uint = uint32_t;
using ulong = unsigned long;

static_assert(std::is_trivially_copyable_v<half> && sizeof(half) == 2);
static_assert(float(half(65504)) == 65504.0f && half(65520.0f).bits == 0x7c00);
static_assert(half(0x1p-24f).bits == 1 && half(0x1p-25f).bits == 0 && half(0x1.8p-25f).bits == 1);
static_assert(half(2049).bits == half(2048).bits && half(2051).bits == half(2052).bits);
static_assert(float(bfloat(257)) == 256.0f && float(bfloat(259)) == 260.0f);

// Metal's own names for what its standard library is written with.
#define METAL_FUNC inline

// For a function with #pragma clang fp contract(off), which gcc does not know; it forgets the attribute where it puts the
// function in the place of a call.
#if defined(__clang__)
#define BENCH_UNCONTRACTED
#else
#define BENCH_UNCONTRACTED __attribute__((noinline, optimize("fp-contract=off")))
#endif

template <typename To, typename From>
constexpr To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type between types of different sizes");
  return __builtin_bit_cast(To, x);
}
