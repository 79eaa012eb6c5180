// metal_simdgroup and the barriers. Every function here is a meeting of the lanes: the machine lets none of them go on
// before all 32 have arrived at the same call.

#pragma once

#include "../runtime/machine.h"
#include "math.h"

// Reading what other lanes brought is the machine's own work, not memory traffic of the kernel.
#define BENCH_UNCHECKED __attribute__((no_sanitize("thread")))
#define BENCH_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace bench {

// What each lane brought. `present` has a bit for each lane of the simdgroup.
template <typename T>
struct Lanes {
  T value[kSimdSize];
  uint32_t present;
  uint32_t own;

  bool has(uint32_t lane) const {
    return lane < kSimdSize && ((present >> lane) & 1);
  }
};

// Functions that are not checked hand their results back through a pointer: see bench::call.
template <typename T>
BENCH_UNCHECKED void meet(Lanes<T>* all, const char* what, const T* mine, const char* file, int line) {
  static_assert(sizeof(T) <= kSlotBytes && std::is_trivially_copyable_v<T>);
  Slot slot;
  __builtin_memcpy(slot.bytes, mine, sizeof(T));
  const Slot* slots = exchange(what, slot, {file, line});
  all->present = present_lanes();
  all->own = lane_index();
  for (uint32_t i = 0; i < kSimdSize; i++) {
    __builtin_memcpy(&all->value[i], slots[i].bytes, sizeof(T));
  }
}

// The order in which a GPU combines lanes is not documented. Kernels that are compared run in several. The result is the
// value of lane 0.
template <typename T, typename Op>
BENCH_UNCHECKED void reduce(Lanes<T>* all, Op op) {
  auto combine = [&](uint32_t to, uint32_t from) BENCH_UNCHECKED {
    if (all->has(from)) {
      all->value[to] = all->has(to) ? T(op(all->value[to], all->value[from])) : all->value[from];
      all->present |= 1u << to;
    }
  };
  switch (reduction_order()) {
    case Order::kHalves:
      for (uint32_t step = kSimdSize / 2; step > 0; step /= 2) {
        for (uint32_t i = 0; i < step; i++) {
          combine(i, i + step);
        }
      }
      break;
    case Order::kNeighbours:
      for (uint32_t step = 1; step < kSimdSize; step *= 2) {
        for (uint32_t i = 0; i < kSimdSize; i += 2 * step) {
          combine(i, i + step);
        }
      }
      break;
    case Order::kOneByOne:
      for (uint32_t i = 1; i < kSimdSize; i++) {
        combine(0, i);
      }
      break;
  }
}

// The result is the value of the lane itself.
template <typename T, typename Op>
BENCH_UNCHECKED void prefix(Lanes<T>* all, T start, bool inclusive, Op op) {
  T sum = start;
  for (uint32_t i = 0; i < all->own + (inclusive ? 1 : 0); i++) {
    sum = T(op(sum, all->value[i]));
  }
  all->value[all->own] = sum;
}

// MLX's headers instantiate it for bfloat, which no kernel calls.
template <typename T>
T exclusive_or(T a, T b) {
  if constexpr (requires { a ^ b; }) {
    return a ^ b;
  } else {
    fault("undefined", "simd_xor of floating-point numbers");
  }
}

inline uint32_t checked_lane(const char* what, uint32_t present, uint32_t lane) {
  if (lane >= kSimdSize || !((present >> lane) & 1)) {
    fault("lane", "%s reads lane %u, which is not there", what, lane);
  }
  return lane;
}

} // namespace bench

#define BENCH_REDUCTION(name, op)                                                          \
  template <typename T>                                                                    \
  T __metal_##name(T x, BENCH_HERE) {                                                      \
    bench::Lanes<T> all;                                                                   \
    bench::meet(&all, #name, &x, file, line);                                              \
    bench::reduce(&all, [](T a, T b) BENCH_UNCHECKED { return op; });                      \
    return all.value[0];                                                                   \
  }                                                                                        \
  namespace metal {                                                                        \
  template <typename T>                                                                    \
  T name(T x, BENCH_HERE) {                                                                \
    return __metal_##name(x, file, line);                                                  \
  }                                                                                        \
  }
BENCH_REDUCTION(simd_sum, a + b)
BENCH_REDUCTION(simd_product, a* b)
BENCH_REDUCTION(simd_max, (a < b || a != a ? b : a))
BENCH_REDUCTION(simd_min, (b < a || a != a ? b : a))
BENCH_REDUCTION(simd_and, a& b)
BENCH_REDUCTION(simd_or, a | b)
BENCH_REDUCTION(simd_xor, bench::exclusive_or(a, b))
#undef BENCH_REDUCTION

#define BENCH_PREFIX(name, start, inclusive, op)                                           \
  template <typename T>                                                                    \
  T __metal_##name(T x, BENCH_HERE) {                                                      \
    bench::Lanes<T> all;                                                                   \
    bench::meet(&all, #name, &x, file, line);                                              \
    bench::prefix(&all, T(start), inclusive, [](T a, T b) BENCH_UNCHECKED { return op; }); \
    return all.value[all.own];                                                             \
  }                                                                                        \
  namespace metal {                                                                        \
  template <typename T>                                                                    \
  T name(T x, BENCH_HERE) {                                                                \
    return __metal_##name(x, file, line);                                                  \
  }                                                                                        \
  }
BENCH_PREFIX(simd_prefix_inclusive_sum, 0, true, a + b)
BENCH_PREFIX(simd_prefix_exclusive_sum, 0, false, a + b)
BENCH_PREFIX(simd_prefix_inclusive_product, 1, true, a* b)
BENCH_PREFIX(simd_prefix_exclusive_product, 1, false, a* b)
#undef BENCH_PREFIX

// `source` may use `own` and the second argument, `n`.
#define BENCH_SHUFFLE(name, source)                                 \
  template <typename T>                                             \
  T __metal_##name(T x, uint16_t n, BENCH_HERE) {                   \
    bench::Lanes<T> all;                                            \
    bench::meet(&all, #name, &x, file, line);                       \
    [[maybe_unused]] uint32_t own = all.own;                        \
    return all.value[bench::checked_lane(#name, all.present, source)]; \
  }                                                                 \
  namespace metal {                                                 \
  template <typename T>                                             \
  T name(T x, uint16_t n, BENCH_HERE) {                             \
    return __metal_##name(x, n, file, line);                        \
  }                                                                 \
  }
BENCH_SHUFFLE(simd_broadcast, n)
BENCH_SHUFFLE(simd_shuffle, n)
BENCH_SHUFFLE(simd_shuffle_xor, own ^ n)
BENCH_SHUFFLE(simd_shuffle_down, all.has(own + n) ? own + n : own)
BENCH_SHUFFLE(simd_shuffle_up, own >= n ? own - n : own)
BENCH_SHUFFLE(simd_shuffle_rotate_down, (own + n) % bench::kSimdSize)
BENCH_SHUFFLE(simd_shuffle_rotate_up, (own + bench::kSimdSize - n % bench::kSimdSize) % bench::kSimdSize)
BENCH_SHUFFLE(quad_shuffle, (own & ~3u) + n)
BENCH_SHUFFLE(quad_shuffle_xor, own ^ (n & 3))
BENCH_SHUFFLE(quad_broadcast, (own & ~3u) + n)
#undef BENCH_SHUFFLE

inline uint16_t __metal_get_simdgroup_size(uint16_t) {
  return bench::kSimdSize;
}

template <typename T>
T __metal_simd_shuffle_and_fill_up(T x, T fill, uint16_t n, uint16_t modulo = 32, BENCH_HERE) {
  const char* what = "simd_shuffle_and_fill_up";
  bench::Lanes<T> all, filling;
  bench::meet(&all, what, &x, file, line);
  bench::meet(&filling, what, &fill, file, line);
  uint32_t own = all.own % modulo, first = all.own - own;
  bool inside = own >= n;
  uint32_t lane = bench::checked_lane(what, all.present, first + own - n + (inside ? 0 : modulo));
  return inside ? all.value[lane] : filling.value[lane];
}

template <typename T>
T __metal_simd_shuffle_and_fill_down(T x, T fill, uint16_t n, uint16_t modulo = 32, BENCH_HERE) {
  const char* what = "simd_shuffle_and_fill_down";
  bench::Lanes<T> all, filling;
  bench::meet(&all, what, &x, file, line);
  bench::meet(&filling, what, &fill, file, line);
  uint32_t own = all.own % modulo, first = all.own - own;
  bool inside = own + n < modulo;
  uint32_t lane = bench::checked_lane(what, all.present, first + own + n - (inside ? 0 : modulo));
  return inside ? all.value[lane] : filling.value[lane];
}

namespace metal {

template <typename T>
T simd_shuffle_and_fill_up(T x, T fill, uint16_t n, BENCH_HERE) {
  return __metal_simd_shuffle_and_fill_up(x, fill, n, 32, file, line);
}
template <typename T>
T simd_shuffle_and_fill_down(T x, T fill, uint16_t n, BENCH_HERE) {
  return __metal_simd_shuffle_and_fill_down(x, fill, n, 32, file, line);
}

template <typename T>
T simd_broadcast_first(T x, BENCH_HERE) {
  bench::Lanes<T> all;
  bench::meet(&all, "simd_broadcast_first", &x, file, line);
  return all.value[__builtin_ctz(all.present)];
}

struct simd_vote {
  using vote_t = uint64_t;
  vote_t votes;
  explicit operator vote_t() const {
    return votes;
  }
};

inline simd_vote simd_ballot(bool x, BENCH_HERE) {
  bench::Lanes<bool> all;
  bench::meet(&all, "simd_ballot", &x, file, line);
  uint64_t votes = 0;
  for (uint32_t i = 0; i < bench::kSimdSize; i++) {
    votes |= uint64_t(all.has(i) && all.value[i]) << i;
  }
  return {votes};
}
inline bool simd_any(bool x, BENCH_HERE) {
  return simd_ballot(x, file, line).votes != 0;
}
inline bool simd_all(bool x, BENCH_HERE) {
  return simd_ballot(!x, file, line).votes == 0;
}

template <typename T>
T quad_sum(T x, BENCH_HERE) {
  bench::Lanes<T> all;
  bench::meet(&all, "quad_sum", &x, file, line);
  uint32_t first = all.own & ~3u;
  return T(T(all.value[first] + all.value[first + 1]) + T(all.value[first + 2] + all.value[first + 3]));
}

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(int(a) | int(b));
}

inline void threadgroup_barrier(mem_flags flags, BENCH_HERE) {
  bench::barrier(bench::Scope::kThreadgroup, unsigned(flags), {file, line});
}
inline void simdgroup_barrier(mem_flags flags, BENCH_HERE) {
  bench::barrier(bench::Scope::kSimdgroup, unsigned(flags), {file, line});
}

} // namespace metal
