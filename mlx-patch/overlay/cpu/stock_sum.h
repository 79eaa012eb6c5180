// How stock adds up float16 and bfloat16 on the CPU.

#pragma once

#include <type_traits>

#include "mlx/backend/cpu/simd/simd.h"
#include "mlx/types/half_types.h"
#include "zmlx/mlx_version.h"

namespace zmlx::cpu {

template <typename T>
inline constexpr bool sums_in_float32 = linked::sums_in_float32 &&
    (std::is_same_v<T, mlx::core::bfloat16_t> ||
     (std::is_same_v<T, mlx::core::float16_t> && mlx::core::simd::max_size<mlx::core::float16_t> == 1));

// The type that holds a sum of values of type T until it is complete.
template <typename T>
using Sum = std::conditional_t<sums_in_float32<T>, float, T>;

} // namespace zmlx::cpu
