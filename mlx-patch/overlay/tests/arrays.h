// What the programs here share: random arrays of every kind, comparison bit for bit, and counting.

#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>
#include <string>

#include "cpu/thread_pool.h"
#include "mlx/mlx.h"
#include "zmlx/primitives.h"

namespace zmlx::tests {

namespace mx = mlx::core;
using mx::array;

inline std::mt19937_64 rng(1);
inline int64_t compared = 0;
inline int cases = 0;
inline int failures = 0;
// Skips what takes long and differs from the rest by its values alone.
inline bool quick = false;

enum class Values {
  Normal,
  Large,
  // around 2^45: a product of two is finite in bfloat16, of three it is not
  Huge,
  // denormals of every type among them
  Tiny,
  // one in ten infinite, not a number or minus zero, another one of any exponent
  Extreme,
  // a few of those among normal ones
  Sprinkled,
};

inline double uniform(double lo, double hi) {
  return std::uniform_real_distribution<double>(lo, hi)(rng);
}

inline float draw(Values v) {
  auto normal = [] { return std::normal_distribution<float>(0.0f, 1.0f)(rng); };
  switch (v) {
    case Values::Normal:
      return normal();
    case Values::Large:
      return normal() * 30;
    case Values::Huge:
      return std::ldexp(normal(), 45);
    case Values::Tiny:
      return std::ldexp(uniform(-1, 1), static_cast<int>(uniform(-149, 4)));
    case Values::Extreme: {
      const float special[] = {INFINITY, -INFINITY, NAN, -NAN, -0.0f};
      int pick = rng() % 40;
      if (pick < 5) {
        return special[pick];
      }
      return pick < 10 ? std::ldexp(uniform(-1, 1), static_cast<int>(uniform(-149, 128))) : normal();
    }
    case Values::Sprinkled: {
      const float special[] = {INFINITY, -INFINITY, NAN, -NAN, -0.0f, 1e38f, -1e30f, 1e-40f};
      int pick = rng() % 400;
      return pick < 8 ? special[pick] : normal();
    }
  }
  return 0;
}

inline int64_t count(const mx::Shape& shape) {
  int64_t n = 1;
  for (int d : shape) {
    n *= d;
  }
  return n;
}

inline array random_array(mx::Shape shape, mx::Dtype dtype, Values v = Values::Normal, double scale = 1) {
  std::vector<float> data(count(shape));
  for (auto& x : data) {
    x = draw(v) * scale;
  }
  auto a = mx::astype(array(data.data(), shape, mx::float32), dtype);
  mx::eval(a);
  return a;
}

// Below `below`, or any where it is 0.
inline array random_u32(mx::Shape shape, uint64_t below = 0) {
  std::vector<uint32_t> data(count(shape));
  for (auto& x : data) {
    x = below ? rng() % below : rng();
  }
  return array(data.data(), shape, mx::uint32);
}

inline bool is_nan(const array& a, int64_t i) {
  switch (a.dtype()) {
    case mx::float32:
      return std::isnan(a.data<float>()[i]);
    case mx::float16:
      return std::isnan(static_cast<float>(a.data<mx::float16_t>()[i]));
    default:
      return false;
  }
}

// Same shape, dtype and bits. All NaNs count as equal: which of two survives an operation is the compiler's choice.
inline bool same(const std::string& what, array a, array b) {
  cases++;
  mx::eval(a, b);
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) {
    std::cout << "DIFFERS " << what << ": " << a.dtype() << a.shape() << " vs " << b.dtype() << b.shape() << "\n";
    failures++;
    return false;
  }
  a = mx::contiguous(a);
  b = mx::contiguous(b);
  mx::eval(a, b);
  auto pa = a.data<uint8_t>();
  auto pb = b.data<uint8_t>();
  int64_t item = a.itemsize();
  int64_t wrong = 0;
  int64_t first = -1;
  for (int64_t i = 0; i < int64_t(a.size()); i++) {
    if (std::memcmp(pa + i * item, pb + i * item, item) && !(is_nan(a, i) && is_nan(b, i))) {
      wrong++;
      first = first < 0 ? i : first;
    }
  }
  compared += a.size();
  if (!wrong) {
    return true;
  }
  failures++;
  if (failures < 40) {
    uint32_t x = 0, y = 0;
    std::memcpy(&x, pa + first * item, item);
    std::memcpy(&y, pb + first * item, item);
    std::printf(
        "DIFFERS %s: %lld of %lld, first at %lld: %08x, expected %08x\n",
        what.c_str(),
        (long long)wrong,
        (long long)a.size(),
        (long long)first,
        x,
        y);
  }
  return false;
}

// [--isa NAME] [--threads N] [--seed S] [--quick]; calls `other` with the rest, one by one. False when the instruction
// set is not here.
template <typename Other>
bool read_options(int argc, char** argv, Other&& other) {
  mx::set_default_device(mx::Device::cpu);
  for (int i = 1; i < argc; i++) {
    std::string a = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (a == "--isa") {
      i++;
      if (!zmlx::set_cpu_isa(value)) {
        std::printf("SKIPPED: no %s here\n", value);
        return false;
      }
    } else if (a == "--threads") {
      i++;
      // started, however few processors there are: work is cut for those that work at once
      zmlx::cpu::set_available_threads([] { return 16; });
      zmlx::set_num_threads(std::atoi(value));
    } else if (a == "--seed") {
      i++;
      rng.seed(std::atoll(value));
    } else if (a == "--quick") {
      quick = true;
    } else {
      i += other(a, value);
    }
  }
  std::printf("isa %s, %d threads\n", zmlx::cpu_isa().c_str(), zmlx::num_threads());
  return true;
}

inline int finish() {
  std::printf("%d cases, %lld values compared, %d differ\n", cases, (long long)compared, failures);
  return failures ? 1 : 0;
}

} // namespace zmlx::tests
