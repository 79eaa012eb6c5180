// Transformations of a primitive through an equivalent function in MLX's ordinary ops. (mlx::core::fast::Custom does
// this inside MLX, but a shared libmlx does not export it.)

#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "mlx/array.h"

namespace zmlx {

using Fallback = std::function<std::vector<mlx::core::array>(const std::vector<mlx::core::array>&)>;

std::pair<std::vector<mlx::core::array>, std::vector<int>>
fallback_vmap(const Fallback& f, const std::vector<mlx::core::array>& inputs, const std::vector<int>& axes);

std::vector<mlx::core::array> fallback_jvp(
    const Fallback& f,
    const std::vector<mlx::core::array>& primals,
    const std::vector<mlx::core::array>& tangents,
    const std::vector<int>& argnums);

std::vector<mlx::core::array> fallback_vjp(
    const Fallback& f,
    const std::vector<mlx::core::array>& primals,
    const std::vector<mlx::core::array>& cotangents,
    const std::vector<int>& argnums);

} // namespace zmlx
