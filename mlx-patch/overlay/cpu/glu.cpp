// Biases of a gated feed-forward's projections, its activation and product, element by element, by MLX's own functors,
// so that each step rounds as the stock ops do.
//
// Idea:   for the 16-bit types what becomes of a gate is a function of 65,536 inputs: a table, filled on first use
//         (1 to 4 ms).
// Bound:  two loads, a table read, one multiply and one rounding per element; two more loads and additions for biases.

#include "cpu/glu.h"

#include <atomic>
#include <mutex>

#include "mlx/backend/cpu/binary_ops.h"
#include "mlx/backend/cpu/unary_ops.h"
#include "mlx/types/half_types.h"

namespace zmlx::cpu {

namespace {

using namespace mlx::core::detail;

// What becomes of a gate, op by op as gated() in zmlx/glu.cpp.
template <typename T>
T activated(T x, const Glu& glu) {
  switch (glu.activation) {
    case Activation::GeluTanh: {
      T cubic = Multiply{}(static_cast<T>(0.044715f), Power{}(x, static_cast<T>(3.0f)));
      T inner = Multiply{}(static_cast<T>(0.7978845608028654f), Add{}(x, cubic));
      T half = Multiply{}(static_cast<T>(0.5f), x);
      return Multiply{}(half, Add{}(static_cast<T>(1.0f), T(Tanh{}(inner))));
    }
    case Activation::ClippedSwiglu: {
      T g = Minimum{}(x, static_cast<T>(glu.limit));
      return Multiply{}(g, T(Sigmoid{}(T(Multiply{}(static_cast<T>(glu.alpha), g)))));
    }
    default:
      return Multiply{}(x, T(Sigmoid{}(x)));
  }
}

template <typename T>
T clipped(T up, T limit) {
  T clip = Minimum{}(T(Maximum{}(up, static_cast<T>(-limit))), limit);
  return Add{}(clip, static_cast<T>(1.0f));
}

template <typename T>
struct Table {
  Glu glu;
  T values[1 << 16];
};

// The table of an activation; null for one more than there is room for. Tables are never freed: a stream thread may
// outlive static destructors.
template <typename T>
const T* table_of(const Glu& glu) {
  static std::atomic<const Table<T>*> tables[8];
  static std::mutex filling;
  auto find = [&]() -> const T* {
    for (auto& slot : tables) {
      auto* table = slot.load(std::memory_order_acquire);
      if (table && table->glu == glu) {
        return table->values;
      }
    }
    return nullptr;
  };
  if (auto* values = find()) {
    return values;
  }
  std::lock_guard lock(filling);
  if (auto* values = find()) {
    return values;
  }
  for (auto& slot : tables) {
    if (slot.load(std::memory_order_relaxed)) {
      continue;
    }
    auto table = new Table<T>{glu, {}};
    for (uint32_t i = 0; i < 1 << 16; i++) {
      uint16_t bits = i;
      T x;
      __builtin_memcpy(&x, &bits, sizeof(x));
      table->values[i] = activated(x, glu);
    }
    slot.store(table, std::memory_order_release);
    return table->values;
  }
  return nullptr;
}

template <typename T, typename Activated>
void join(const GluRow& row, const Glu& glu, int64_t n, Activated&& activate) {
  auto gate = static_cast<const T*>(row.gate);
  auto up = static_cast<const T*>(row.up);
  auto gate_bias = static_cast<const T*>(row.gate_bias);
  auto up_bias = static_cast<const T*>(row.up_bias);
  auto y = static_cast<T*>(row.y);
  auto each = [&](auto&& gate_at, auto&& up_at) {
    if (glu.activation == Activation::ClippedSwiglu) {
      auto limit = static_cast<T>(glu.limit);
      for (int64_t i = 0; i < n; i++) {
        y[i] = Multiply{}(clipped<T>(up_at(i), limit), activate(gate_at(i)));
      }
    } else {
      for (int64_t i = 0; i < n; i++) {
        y[i] = Multiply{}(activate(gate_at(i)), up_at(i));
      }
    }
  };
  if (gate_bias) {
    each([=](int64_t i) -> T { return Add{}(gate[i], gate_bias[i]); }, [=](int64_t i) -> T {
      return Add{}(up[i], up_bias[i]);
    });
  } else {
    each([=](int64_t i) { return gate[i]; }, [=](int64_t i) { return up[i]; });
  }
}

template <typename T>
void join_halves(const GluRow& row, const Glu& glu, int64_t n) {
  if (auto* table = table_of<T>(glu)) {
    return join<T>(row, glu, n, [table](T x) {
      uint16_t bits;
      __builtin_memcpy(&bits, &x, sizeof(bits));
      return table[bits];
    });
  }
  join<T>(row, glu, n, [&](T x) { return activated(x, glu); });
}

template <typename T>
void add(const void* bias_, void* y_, int64_t n) {
  auto bias = static_cast<const T*>(bias_);
  auto y = static_cast<T*>(y_);
  for (int64_t i = 0; i < n; i++) {
    y[i] = Add{}(y[i], bias[i]);
  }
}

} // namespace

void glu_row(DType dtype, const Glu& glu, const GluRow& row, int64_t n) {
  switch (dtype) {
    case DType::F32:
      return join<float>(row, glu, n, [&](float x) { return activated(x, glu); });
    case DType::F16:
      return join_halves<mlx::core::float16_t>(row, glu, n);
    case DType::BF16:
      return join_halves<mlx::core::bfloat16_t>(row, glu, n);
  }
}

void add_bias_row(DType dtype, const void* bias, void* y, int64_t n) {
  switch (dtype) {
    case DType::F32:
      return add<float>(bias, y, n);
    case DType::F16:
      return add<mlx::core::float16_t>(bias, y, n);
    case DType::BF16:
      return add<mlx::core::bfloat16_t>(bias, y, n);
  }
}

} // namespace zmlx::cpu
