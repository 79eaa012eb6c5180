// silu(gate) * up, element by element, by MLX's own functors, so that each step rounds as the stock ops do.
//
// Idea:   for the 16-bit types silu is a function of 65,536 inputs: a table, filled on first use (about 1 ms).
// Bound:  two loads, a table read, one multiply and one rounding per element.

#include "cpu/operands.h"
#include "mlx/backend/cpu/binary_ops.h"
#include "mlx/backend/cpu/unary_ops.h"
#include "mlx/types/half_types.h"

namespace zmlx::cpu {

namespace {

template <typename T>
T silu(T x) {
  return mlx::core::detail::Multiply{}(x, mlx::core::detail::Sigmoid{}(x));
}

template <typename T>
const T* silu_table() {
  // Never freed: a stream thread may outlive static destructors.
  static const T* const table = [] {
    constexpr uint32_t kValues = 1 << 16;
    auto t = new T[kValues];
    for (uint32_t i = 0; i < kValues; i++) {
      uint16_t bits = i;
      T x;
      __builtin_memcpy(&x, &bits, sizeof(x));
      t[i] = silu(x);
    }
    return t;
  }();
  return table;
}

template <typename T>
void swiglu_half(const T* gate, const T* up, T* y, int64_t n) {
  const T* table = silu_table<T>();
  for (int64_t i = 0; i < n; i++) {
    uint16_t bits;
    __builtin_memcpy(&bits, &gate[i], sizeof(bits));
    y[i] = mlx::core::detail::Multiply{}(table[bits], up[i]);
  }
}

} // namespace

void swiglu(DType dtype, const void* gate, const void* up, void* y, int64_t n) {
  using mlx::core::bfloat16_t;
  using mlx::core::float16_t;
  switch (dtype) {
    case DType::F32: {
      auto g = static_cast<const float*>(gate);
      auto u = static_cast<const float*>(up);
      auto out = static_cast<float*>(y);
      for (int64_t i = 0; i < n; i++) {
        out[i] = mlx::core::detail::Multiply{}(silu(g[i]), u[i]);
      }
      return;
    }
    case DType::F16:
      return swiglu_half(
          static_cast<const float16_t*>(gate), static_cast<const float16_t*>(up), static_cast<float16_t*>(y), n);
    case DType::BF16:
      return swiglu_half(
          static_cast<const bfloat16_t*>(gate), static_cast<const bfloat16_t*>(up), static_cast<bfloat16_t*>(y), n);
  }
}

} // namespace zmlx::cpu
