// What the Metal backends of our primitives share.
//
// A <name>/kernel*.metal holds templates and, unless ZMLX_NO_INSTANCES is defined, the instances that are compiled ahead of
// time into zmlx.metallib. Where there is no such file (without Xcode), the text is compiled while the program runs, through
// MLX's own cache of libraries, with the one instance that is asked for at its end. Metal reads the text as ASCII.

#pragma once

#include <string>

#include "mlx/array.h"
#include "mlx/backend/metal/device.h"
#include "zmlx/registry.h"

namespace zmlx::on_metal {

struct Kernel {
  // Path in the overlay, such as "rms_norm/kernel.metal".
  std::string file;
  // Its host_name.
  std::string name;
  // The template with its arguments, such as "zmlx_rms_norm<bfloat16_t, 4>".
  std::string instance;
};

// Compiled now if it was not before.
MTL::ComputePipelineState* pipeline(mlx::core::metal::Device& d, const Kernel& kernel);

// As MLX's kernels spell it, also in their names: "float", "float16_t" or "bfloat16_t".
const char* type_name(mlx::core::Dtype dtype);

// Memory of its own for an output, in rows.
void allocate(mlx::core::array& out);

// The threads that share a row of so many numbers, four each, in whole simdgroups: those of MLX's softmax and norms.
MTL::Size row_group(int size);

// The backend that runs what the definition says that Metal runs.
template <typename P, void (*kEval)(const P&, const std::vector<array>&, std::span<array>)>
GpuBackend backend(const Definition& definition) {
  return gpu_backend<P, kEval>(definition.refuse_metal, definition.metal_variants);
}

} // namespace zmlx::on_metal
