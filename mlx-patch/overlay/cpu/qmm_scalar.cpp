// Reference kernels: one output at a time, the loops of MLX's own backend/cpu/quantized.cpp.
//
// Idea:   every output accumulates sequentially over K; each product and sum rounds to the activation type T by MLX's
//         own half types, so the bits are stock's by construction. The vector kernels are tested against this one.
// Layout: as in qmm.h; weights are read as bytes, little endian.
// Bound:  about 1 to 3 ns a weight (software rounding).
// Limits: none; runs everywhere. `fast` is the same loop with f32 accumulation.

#include <cstring>

#include "cpu/qmm.h"
#include "mlx/types/complex.h" // unary_ops.h needs it first
#include "mlx/backend/cpu/unary_ops.h"
#include "mlx/types/half_types.h"

namespace zmlx::cpu {

namespace {

using mlx::core::bfloat16_t;
using mlx::core::float16_t;

template <int bits>
inline uint32_t weight_at(const uint8_t* row, int64_t i) {
  if constexpr (bits == 8) {
    return row[i];
  } else if constexpr (bits == 2 || bits == 4) {
    constexpr int per_byte = 8 / bits;
    return (row[i / per_byte] >> (bits * (i % per_byte))) & ((1 << bits) - 1);
  } else {
    int64_t bit = i * bits;
    int shift = bit % 8;
    uint32_t v = row[bit / 8];
    if (shift + bits > 8) {
      v |= uint32_t(row[bit / 8 + 1]) << 8;
    }
    return (v >> shift) & ((1 << bits) - 1);
  }
}

template <typename T>
T float_scale(uint8_t s, Mode mode) {
  const auto& t = float_tables();
  return static_cast<T>(mode == Mode::Nvfp4 ? t.fp8[s] : t.e8m0[s]);
}

// The type in which products and sums are rounded.
template <typename T, bool exact>
using Acc = std::conditional_t<exact, T, float>;

template <typename T, int bits, bool exact>
void affine_t(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  using A = Acc<T, exact>;
  const int64_t groups = q.K / q.group_size;
  for (int i = 0; i < m; i++) {
    auto y = static_cast<T*>(ys[i]);
    for (int64_t n = n0; n < n1; n++) {
      auto x = static_cast<const T*>(xs[i]);
      const uint8_t* w = q.w + n * q.w_stride;
      auto scales = reinterpret_cast<const T*>(q.scales + n * q.scale_stride);
      auto biases = reinterpret_cast<const T*>(q.biases + n * q.bias_stride);
      A sum = 0;
      for (int64_t g = 0; g < groups; g++) {
        A scale = scales[g];
        A bias = biases[g];
        for (int64_t k = g * q.group_size; k < (g + 1) * q.group_size; k++) {
          A wk = scale * static_cast<A>(weight_at<bits>(w, k)) + bias;
          sum += static_cast<A>(x[k]) * wk;
        }
      }
      y[n - n0] = static_cast<T>(sum);
    }
  }
}

template <typename T, int bits, bool exact>
void affine_n(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  using A = Acc<T, exact>;
  A sum[kColumnBlock];
  for (int i = 0; i < m; i++) {
    auto x = static_cast<const T*>(xs[i]);
    for (int64_t nb = n0; nb < n1; nb += kColumnBlock) {
      const int64_t ne = nb + kColumnBlock < n1 ? nb + kColumnBlock : n1;
      for (int64_t n = nb; n < ne; n++) {
        sum[n - nb] = 0;
      }
      for (int64_t k = 0; k < q.K; k++) {
        const uint8_t* w = q.w + k * q.w_stride;
        auto scales = reinterpret_cast<const T*>(q.scales + k * q.scale_stride);
        auto biases = reinterpret_cast<const T*>(q.biases + k * q.bias_stride);
        A xk = x[k];
        for (int64_t g = nb / q.group_size; g * q.group_size < ne; g++) {
          A scale = scales[g];
          A bias = biases[g];
          for (int64_t n = g * q.group_size; n < (g + 1) * q.group_size; n++) {
            A wn = scale * static_cast<A>(weight_at<bits>(w, n)) + bias;
            sum[n - nb] += xk * wn;
          }
        }
      }
      auto y = static_cast<T*>(ys[i]) + (nb - n0);
      for (int64_t n = nb; n < ne; n++) {
        y[n - nb] = static_cast<T>(sum[n - nb]);
      }
    }
  }
}

template <int bits>
inline float float_weight(const FloatTables& t, const uint8_t* row, int64_t i) {
  return bits == 4 ? t.fp4[weight_at<4>(row, i)] : t.fp8[row[i]];
}

template <typename T, int bits, bool exact>
void float_t(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  using A = Acc<T, exact>;
  const auto& tables = float_tables();
  const int64_t groups = q.K / q.group_size;
  for (int i = 0; i < m; i++) {
    auto y = static_cast<T*>(ys[i]);
    auto x = static_cast<const T*>(xs[i]);
    for (int64_t n = n0; n < n1; n++) {
      const uint8_t* w = q.w + n * q.w_stride;
      const uint8_t* scales = q.scales + n * q.scale_stride;
      A sum = 0;
      for (int64_t g = 0; g < groups; g++) {
        A scale = float_scale<T>(scales[g], q.mode);
        A group_sum = 0;
        for (int64_t k = g * q.group_size; k < (g + 1) * q.group_size; k++) {
          group_sum += static_cast<A>(x[k]) * static_cast<A>(float_weight<bits>(tables, w, k));
        }
        sum += scale * group_sum;
      }
      y[n - n0] = static_cast<T>(sum);
    }
  }
}

template <typename T, int bits, bool exact>
void float_n(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  using A = Acc<T, exact>;
  const auto& tables = float_tables();
  A sum[kColumnBlock];
  for (int i = 0; i < m; i++) {
    auto x = static_cast<const T*>(xs[i]);
    for (int64_t nb = n0; nb < n1; nb += kColumnBlock) {
      const int64_t ne = nb + kColumnBlock < n1 ? nb + kColumnBlock : n1;
      for (int64_t n = nb; n < ne; n++) {
        sum[n - nb] = 0;
      }
      for (int64_t k = 0; k < q.K; k++) {
        const uint8_t* w = q.w + k * q.w_stride;
        const uint8_t* scales = q.scales + k * q.scale_stride;
        A xk = x[k];
        for (int64_t g = nb / q.group_size; g * q.group_size < ne; g++) {
          A scaled = xk * static_cast<A>(float_scale<T>(scales[g], q.mode));
          for (int64_t n = g * q.group_size; n < (g + 1) * q.group_size; n++) {
            sum[n - nb] += scaled * static_cast<A>(float_weight<bits>(tables, w, n));
          }
        }
      }
      auto y = static_cast<T*>(ys[i]) + (nb - n0);
      for (int64_t n = nb; n < ne; n++) {
        y[n - nb] = static_cast<T>(sum[n - nb]);
      }
    }
  }
}

template <typename T, bool exact>
void run_typed(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* x, void* const* y) {
  if (q.mode != Mode::Affine) {
    auto f = q.transpose ? (q.bits == 4 ? float_t<T, 4, exact> : float_t<T, 8, exact>)
                         : (q.bits == 4 ? float_n<T, 4, exact> : float_n<T, 8, exact>);
    return f(q, n0, n1, m, x, y);
  }
#define ZMLX_BITS(b)                                                                      \
  case b:                                                                                 \
    return (q.transpose ? affine_t<T, b, exact> : affine_n<T, b, exact>)(q, n0, n1, m, x, y);
  switch (q.bits) {
    ZMLX_BITS(2)
    ZMLX_BITS(3)
    ZMLX_BITS(4)
    ZMLX_BITS(5)
    ZMLX_BITS(6)
    ZMLX_BITS(8)
  }
#undef ZMLX_BITS
}

template <bool exact>
void run(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* x, void* const* y) {
  switch (q.dtype) {
    case DType::F32:
      return run_typed<float, exact>(q, n0, n1, m, x, y);
    case DType::F16:
      return run_typed<float16_t, exact>(q, n0, n1, m, x, y);
    case DType::BF16:
      return run_typed<bfloat16_t, exact>(q, n0, n1, m, x, y);
  }
}

FloatTables build_tables() {
  FloatTables t;
  const float fp4[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  for (int i = 0; i < 8; i++) {
    t.fp4[i] = fp4[i];
    t.fp4[i + 8] = -fp4[i];
  }
  for (int i = 0; i < 256; i++) {
    t.fp8[i] = mlx::core::detail::FromFP8{}(static_cast<uint8_t>(i));
    // 2^(i - 127), where 0 is the bf16 denormal 2^-127 and 255 is infinity.
    uint32_t bits = i == 0 ? 0x00400000u : uint32_t(i) << 23;
    std::memcpy(&t.e8m0[i], &bits, sizeof(bits));
    t.e8m0_f16[i] = static_cast<float>(static_cast<float16_t>(t.e8m0[i]));
  }
  return t;
}

} // namespace

const FloatTables& float_tables() {
  static const FloatTables tables = build_tables();
  return tables;
}

const Kernels* scalar_kernels() {
  static const Kernels k{"scalar", run<true>, run<false>};
  return &k;
}

} // namespace zmlx::cpu
