// Telling an array whose values are there from one that is only on its way.

#pragma once

#include <vector>

#include "mlx/array.h"

namespace zmlx {

// Marks those of `inputs` that have their values as available. Asked while a graph is built, when no evaluation of this
// thread is under way: during one, an array that is still to be computed may look as if it had been. On the CPU products
// whose weights are marked run together (cpu/neighbours.h).
inline void note_available(const std::vector<mlx::core::array>& inputs, mlx::core::Stream s) {
  if (s.device == mlx::core::Device::cpu) {
    for (auto& a : inputs) {
      (void)a.is_available();
    }
  }
}

} // namespace zmlx
