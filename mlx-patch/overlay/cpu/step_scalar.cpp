// The step kernels one element at a time, by MLX's own number types: any machine, and the reference for the others.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "mlx/types/half_types.h"

namespace zmlx::cpu {
namespace {

struct V {
  using F = float;
  using M = bool;
  using I = uint32_t;
  static constexpr int W = 1;
  static constexpr int kTileRows = 4;

  static F load(const float* p) {
    return *p;
  }
  static void store(float* p, F x) {
    *p = x;
  }
  static F set(float x) {
    return x;
  }
  static F add(F a, F b) {
    return a + b;
  }
  static F sub(F a, F b) {
    return a - b;
  }
  static F mul(F a, F b) {
    return a * b;
  }
  static F div(F a, F b) {
    return a / b;
  }
  static F fma(F a, F b, F c) {
    return std::fma(a, b, c);
  }
  static F max(F a, F b) {
    return a > b ? a : b;
  }
  static F floor(F x) {
    return std::floor(x);
  }
  static F abs(F x) {
    return std::abs(x);
  }
  static F neg(F x) {
    return -x;
  }

  static M lt(F a, F b) {
    return a < b;
  }
  static M gt(F a, F b) {
    return a > b;
  }
  static M ge(F a, F b) {
    return a >= b;
  }
  static M unordered(F x) {
    return x != x;
  }
  static M either(M a, M b) {
    return a || b;
  }
  static bool any(M m) {
    return m;
  }
  static F select(M m, F yes, F no) {
    return m ? yes : no;
  }

  static F power_of_two(F x) {
    if (!(x >= -127.0f && x <= 128.0f)) {
      return 0; // exp_of replaces it
    }
    uint32_t bits = static_cast<uint32_t>(static_cast<int>(x) + 127) << 23;
    float y;
    std::memcpy(&y, &bits, sizeof(y));
    return y;
  }
  static I even_octant(F x) {
    return (static_cast<uint32_t>(x) + 1) & ~1u;
  }
  static F to_float(I x) {
    return static_cast<float>(x);
  }
  static M has_bit(I x, int bit) {
    return (x & bit) != 0;
  }
  static I minus_two(I x) {
    return x - 2;
  }

  template <typename T>
  static F widen(const uint16_t* p) {
    T x;
    std::memcpy(&x, p, sizeof(x));
    return static_cast<float>(x);
  }
  template <typename T>
  static void narrow(uint16_t* p, F x) {
    T y = static_cast<T>(x);
    std::memcpy(p, &y, sizeof(y));
  }

  static F load_bf16(const uint16_t* p) {
    return widen<mlx::core::bfloat16_t>(p);
  }
  static void store_bf16(uint16_t* p, F x) {
    narrow<mlx::core::bfloat16_t>(p, x);
  }
  static F round_bf16(F x) {
    return static_cast<float>(static_cast<mlx::core::bfloat16_t>(x));
  }
  static void split_bf16(F, F&, F&) {}
  static void split_f16(F, F&, F&) {}
  static F load_f16(const uint16_t* p) {
    return widen<mlx::core::float16_t>(p);
  }
  static void store_f16(uint16_t* p, F x) {
    narrow<mlx::core::float16_t>(p, x);
  }
  static F round_f16(F x) {
    return static_cast<float>(static_cast<mlx::core::float16_t>(x));
  }

  static void transpose(F (&)[1]) {}
};

} // namespace
} // namespace zmlx::cpu

#include "cpu/step_impl.h"

namespace zmlx::cpu {

const StepKernels* scalar_step_kernels() {
  static constexpr StepKernels k = make_kernels("scalar");
  return &k;
}

} // namespace zmlx::cpu
