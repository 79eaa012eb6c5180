// metal_atomic: relaxed operations on device and threadgroup memory.

#pragma once

#include "../runtime/machine.h"
#include "traits.h"

namespace bench {
// Checks an access that other threads may meet, and never races with another such access.
void atomic_access(const void* at, size_t bytes);
} // namespace bench

namespace metal {

enum memory_order { memory_order_relaxed };

template <typename T>
struct atomic {
  T value;
};
using atomic_int = atomic<int32_t>;
using atomic_uint = atomic<uint32_t>;

#define BENCH_ATOMIC(name, update)                                                              \
  template <typename T>                                                                         \
  __attribute__((no_sanitize("thread"))) T atomic_##name##_explicit(                            \
      atomic<T>* a, std::type_identity_t<T> x, memory_order) {                                  \
    bench::atomic_access(a, sizeof(T));                                                         \
    T old = a->value;                                                                           \
    a->value = update;                                                                          \
    return old;                                                                                 \
  }
BENCH_ATOMIC(exchange, x)
BENCH_ATOMIC(fetch_add, T(old + x))
BENCH_ATOMIC(fetch_sub, T(old - x))
BENCH_ATOMIC(fetch_max, (old < x ? x : old))
BENCH_ATOMIC(fetch_min, (x < old ? x : old))
BENCH_ATOMIC(fetch_and, T(old & x))
BENCH_ATOMIC(fetch_or, T(old | x))
#undef BENCH_ATOMIC

template <typename T>
__attribute__((no_sanitize("thread"))) T atomic_load_explicit(const atomic<T>* a, memory_order) {
  bench::atomic_access(a, sizeof(T));
  return a->value;
}

template <typename T>
__attribute__((no_sanitize("thread"))) void atomic_store_explicit(
    atomic<T>* a,
    std::type_identity_t<T> x,
    memory_order) {
  bench::atomic_access(a, sizeof(T));
  a->value = x;
}

template <typename T>
__attribute__((no_sanitize("thread"))) bool atomic_compare_exchange_weak_explicit(
    atomic<T>* a,
    T* expected,
    std::type_identity_t<T> x,
    memory_order,
    memory_order) {
  bench::atomic_access(a, sizeof(T));
  if (a->value != *expected) {
    *expected = a->value;
    return false;
  }
  a->value = x;
  return true;
}

} // namespace metal
