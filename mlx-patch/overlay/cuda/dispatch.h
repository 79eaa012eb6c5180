// From what an array or a request says to template arguments.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <type_traits>

#include "mlx/dtype.h"

namespace zmlx::on_cuda {

template <typename T>
struct Type {
  using type = T;
};

template <int value>
using Number = std::integral_constant<int, value>;

[[noreturn]] inline void unexpected(const char* what) {
  throw std::runtime_error(std::string("a CUDA kernel was asked for a ") + what + " that it refuses");
}

// f(Type<T>) for a 16-bit type.
template <typename F>
void dispatch_half(mlx::core::Dtype dtype, F&& f) {
  if (dtype == mlx::core::bfloat16) {
    f(Type<__nv_bfloat16>());
  } else if (dtype == mlx::core::float16) {
    f(Type<__half>());
  } else {
    unexpected("type");
  }
}

// f(Type<T>) for a type of activations.
template <typename F>
void dispatch_type(mlx::core::Dtype dtype, F&& f) {
  dtype == mlx::core::float32 ? f(Type<float>()) : dispatch_half(dtype, f);
}

// f(Type<T>, bits, group size) for one of these widths.
template <int... kWidths, typename F>
void dispatch_widths(mlx::core::Dtype dtype, int bits, int group_size, F&& f) {
  dispatch_half(dtype, [&](auto type) {
    auto with_bits = [&](auto bits) {
      switch (group_size) {
        case 32:
          return f(type, bits, Number<32>());
        case 64:
          return f(type, bits, Number<64>());
        case 128:
          return f(type, bits, Number<128>());
      }
      unexpected("group size");
    };
    if (!((bits == kWidths && (with_bits(Number<kWidths>()), true)) || ...)) {
      unexpected("number of bits");
    }
  });
}

// Those that all kernels have, and all that there are.
template <typename F>
void dispatch_quantized(mlx::core::Dtype dtype, int bits, int group_size, F&& f) {
  dispatch_widths<4, 8>(dtype, bits, group_size, f);
}

template <typename F>
void dispatch_any_width(mlx::core::Dtype dtype, int bits, int group_size, F&& f) {
  dispatch_widths<2, 3, 4, 5, 6, 8>(dtype, bits, group_size, f);
}

} // namespace zmlx::on_cuda
