// metal_type_traits and metal_limits.

#pragma once

#include <limits>

#include "scalar.h"

namespace metal {

using std::bool_constant;
using std::conditional;
using std::conditional_t;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_arithmetic;
using std::is_arithmetic_v;
using std::is_base_of;
using std::is_base_of_v;
using std::is_const;
using std::is_const_v;
using std::is_convertible;
using std::is_convertible_v;
using std::is_integral;
using std::is_integral_v;
using std::is_pointer;
using std::is_pointer_v;
using std::is_same;
using std::is_same_v;
using std::is_signed;
using std::is_signed_v;
using std::is_trivial;
using std::is_unsigned;
using std::is_unsigned_v;
using std::make_signed_t;
using std::make_unsigned_t;
using std::remove_const_t;
using std::remove_cv_t;
using std::remove_pointer_t;
using std::remove_reference_t;
using std::true_type;
using std::type_identity_t;

// An internal of Metal's that MLX uses.
template <typename... T>
using _disjunction = std::disjunction<T...>;

// Address spaces are gone.
template <typename T>
using remove_addrspace_t = remove_cv_t<T>;

template <typename T>
struct is_floating_point
    : bool_constant<std::is_same_v<T, float> || std::is_same_v<T, half> || std::is_same_v<T, bfloat>> {};
template <typename T>
constexpr bool is_floating_point_v = is_floating_point<T>::value;

template <typename T>
struct numeric_limits : std::numeric_limits<T> {};

template <>
struct numeric_limits<half> {
  static constexpr int digits = 11;
  static constexpr bool is_signed = true;
  static constexpr half infinity() {
    return half::of_bits(0x7c00);
  }
  static constexpr half quiet_NaN() {
    return half::of_bits(0x7e00);
  }
  static constexpr half max() {
    return half::of_bits(0x7bff);
  }
  static constexpr half lowest() {
    return half::of_bits(0xfbff);
  }
  static constexpr half min() {
    return half::of_bits(0x0400);
  }
  static constexpr half epsilon() {
    return half::of_bits(0x1400);
  }
};

template <>
struct numeric_limits<bfloat> {
  static constexpr int digits = 8;
  static constexpr bool is_signed = true;
  static constexpr bfloat infinity() {
    return bfloat::of_bits(0x7f80);
  }
  static constexpr bfloat quiet_NaN() {
    return bfloat::of_bits(0x7fc0);
  }
  static constexpr bfloat max() {
    return bfloat::of_bits(0x7f7f);
  }
  static constexpr bfloat lowest() {
    return bfloat::of_bits(0xff7f);
  }
  static constexpr bfloat min() {
    return bfloat::of_bits(0x0080);
  }
  static constexpr bfloat epsilon() {
    return bfloat::of_bits(0x3c00);
  }
};

} // namespace metal
