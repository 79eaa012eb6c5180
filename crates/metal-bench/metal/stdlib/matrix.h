// metal_simdgroup_matrix, as far as MLX's headers have to be read: no kernel that multiplies with it runs here.

#pragma once

#include "vector.h"

namespace metal {

template <typename T, int Rows, int Columns>
struct simdgroup_matrix {
  vec<T, 2> elements;

  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T x) : elements(x) {}
  vec<T, 2>& thread_elements() {
    return elements;
  }
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;

template <typename... T>
void simdgroup_multiply_accumulate(T&&...) {
  static_assert(sizeof...(T) == 0, "simdgroup matrices are not emulated");
}
template <typename... T>
void simdgroup_multiply(T&&...) {
  static_assert(sizeof...(T) == 0, "simdgroup matrices are not emulated");
}

} // namespace metal
