// Everything of the Metal standard library that kernels use, and how they register. Our translation of a .metal file
// begins with it.

#pragma once

#include <utility>

#include "atomic.h"
#include "matrix.h"
#include "simd.h"

namespace bench {

template <typename T>
struct Fetch {
  // a builtin: a scalar or a vector of the position
  static T of(Argument a) {
    Three p = position(a.source);
    return T(p.x);
  }
};
template <typename U>
struct Fetch<metal::vec<U, 2>> {
  static metal::vec<U, 2> of(Argument a) {
    Three p = position(a.source);
    return {U(p.x), U(p.y)};
  }
};
template <typename U>
struct Fetch<metal::vec<U, 3>> {
  static metal::vec<U, 3> of(Argument a) {
    Three p = position(a.source);
    return {U(p.x), U(p.y), U(p.z)};
  }
};
template <typename U>
struct Fetch<U*> {
  static U* of(Argument a) {
    return static_cast<U*>(
        const_cast<void*>(a.source == Source::kBuffer ? buffer(a.index) : threadgroup_memory(a.index)));
  }
};
template <typename U>
struct Fetch<U&> {
  static U& of(Argument a) {
    return *Fetch<U*>::of(a);
  }
};

template <auto kernel, typename... A, size_t... I>
void call(void (*)(A...), const Argument* arguments, std::index_sequence<I...>) {
  kernel(Fetch<A>::of(arguments[I])...);
}

template <size_t N, typename... A>
constexpr bool takes(void (*)(A...)) {
  return sizeof...(A) == N;
}

template <typename... A>
std::index_sequence_for<A...> indices_of(void (*)(A...));

// `kernel` is a constant, so that the compiler can put all that it calls in its place: where a value of a class is handed to
// or back from a function that stays one, gcc reports neither the read nor the write.
template <auto kernel, size_t N>
void call(const Argument (&arguments)[N]) {
  static_assert(takes<N>(kernel), "the translator and the compiler disagree about the parameters");
  call<kernel>(kernel, arguments, decltype(indices_of(kernel))());
}

} // namespace bench

using namespace metal;
