// Functions of MLX whose signatures differ between the versions in zmlx/mlx_version.h.

#pragma once

#include <optional>
#include <string>

#include "mlx/allocator.h"
#include "mlx/ops.h"
#include "zmlx/mlx_version.h"

namespace zmlx::linked {

// Memory for one array, to be handed on by std::move.
using Allocation = decltype(mlx::core::allocator::malloc(0));

inline void* raw_ptr(const Allocation& allocation) {
#if ZMLX_MLX_OWNED_DATA
  return allocation.buffer().raw_ptr();
#else
  return mlx::core::allocator::Buffer(allocation).raw_ptr();
#endif
}

inline mlx::core::array gather_qmm(
    const mlx::core::array& x,
    const mlx::core::array& w,
    const mlx::core::array& scales,
    const std::optional<mlx::core::array>& biases,
    const std::optional<mlx::core::array>& lhs_indices,
    const std::optional<mlx::core::array>& rhs_indices,
    bool transpose,
    int group_size,
    int bits,
    const std::string& mode,
    bool sorted_indices,
    mlx::core::StreamOrDevice s = {}) {
  return mlx::core::gather_qmm(
      x,
      w,
      scales,
      biases,
      lhs_indices,
      rhs_indices,
      transpose,
      group_size,
      bits,
      mode,
#if ZMLX_MLX_GATHER_GLOBAL_SCALE
      std::nullopt,
#endif
      sorted_indices,
      s);
}

} // namespace zmlx::linked
