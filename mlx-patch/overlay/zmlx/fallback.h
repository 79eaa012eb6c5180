// Transformations of a primitive through an equivalent function in MLX's ordinary ops. (mlx::core::fast::Custom does
// this inside MLX, but a shared libmlx does not export it.)

#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "zmlx/registry.h"

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

// A primitive that is transformed through ordinary ops. Self has
//   fallback(argnums)   the same function in ordinary ops; it has a vjp with respect to these inputs, and with none given
//                       all other transformations
//   state()             what, besides its inputs, it depends on
template <typename Self, typename Base = FusedUnary>
class Transformable : public Base {
 public:
  using Base::Base;

  std::pair<std::vector<mlx::core::array>, std::vector<int>> vmap(
      const std::vector<mlx::core::array>& inputs,
      const std::vector<int>& axes) override {
    return fallback_vmap(self().fallback({}), inputs, axes);
  }

  std::vector<mlx::core::array> jvp(
      const std::vector<mlx::core::array>& primals,
      const std::vector<mlx::core::array>& tangents,
      const std::vector<int>& argnums) override {
    return fallback_jvp(self().fallback({}), primals, tangents, argnums);
  }

  std::vector<mlx::core::array> vjp(
      const std::vector<mlx::core::array>& primals,
      const std::vector<mlx::core::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mlx::core::array>&) override {
    return fallback_vjp(self().fallback(argnums), primals, cotangents, argnums);
  }

  bool is_equivalent(const mlx::core::Primitive& other) const override {
    return static_cast<const Self&>(*this).state() == static_cast<const Self&>(other).state();
  }

 private:
  Self& self() {
    return static_cast<Self&>(*this);
  }
};

} // namespace zmlx
