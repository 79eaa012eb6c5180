// What a primitive's folder says about the primitive.
//
// `<name>/op.cpp` defines `Definition define_<name>()`. A folder with a `cuda.cu` or a `metal.cpp` has kernels for that
// backend, and that file defines `GpuBackend <name>_gpu()`. The build lists the folders and writes the table of both.

#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mlx/primitives.h"
#include "zmlx/export_hook.h"
#include "zmlx/support.h"

namespace zmlx {

using mlx::core::array;

// Why not, in words that follow "because"; empty when it runs.
using Refusal = std::string (*)(const Request&);

struct Definition {
  // Of the op and of the folder.
  const char* name;
  // What `supports` is asked with.
  std::vector<std::string_view> parameters;
  // What no kernel does, whatever the device.
  Refusal refuse;
  // What the CPU's kernels do not.
  Refusal refuse_cpu;
  ExportRow row;
  // Parameters that stand for more work, with the values that stand for none. A GPU is not given any other value of
  // them unless its backend lists the name.
  std::vector<Parameter> variants = {};
  // What the Metal kernels do not, asked in every build; null where there are none.
  Refusal refuse_metal = nullptr;
  // Those that the Metal kernels have.
  std::vector<std::string_view> metal_variants = {};
};

// What a backend for the GPU adds.
struct GpuBackend {
  Refusal refuse;
  void (*eval)(const mlx::core::Primitive&, const std::vector<array>& inputs, std::span<array> outputs);
  // The names of the definition's variants that its kernels have.
  std::vector<std::string_view> variants = {};
};

// A backend whose `eval_gpu` is `kEval(primitive, inputs, outputs)`.
template <typename P, void (*kEval)(const P&, const std::vector<array>&, std::span<array>)>
GpuBackend gpu_backend(Refusal refuse, std::vector<std::string_view> variants = {}) {
  auto eval = [](const mlx::core::Primitive& p, const std::vector<array>& inputs, std::span<array> outputs) {
    kEval(static_cast<const P&>(p), inputs, outputs);
  };
  return {refuse, eval, std::move(variants)};
}

struct Row {
  Definition definition;
  // Nothing where the folder has no kernels for the GPU that this build is for.
  std::optional<GpuBackend> gpu;
};

// One row for each folder. Written by the build.
const std::vector<Row>& table();

// A dtype or a machine that none of the CPU's kernels is for.
std::string refuse_on_cpu(const Request& request);

// What belongs to a recorded step: a CPU has none, and none can be saved.
inline std::string refuse_recorded_on_cpu(const Request&) {
  return "steps are recorded on CUDA devices alone";
}
ExportRow unsaved_row(const char* name);

// Throws std::invalid_argument with the reason unless the primitive runs as requested.
void require_support(const char* primitive, const Request& request);

// Runs the primitive's kernel, or throws std::runtime_error where there is none.
void eval_on_gpu(
    const mlx::core::Primitive& primitive,
    const std::vector<array>& inputs,
    std::span<array> outputs);

// Bases of our primitives: what runs on a GPU is in the table.
class FusedUnary : public mlx::core::UnaryPrimitive {
 public:
  using UnaryPrimitive::UnaryPrimitive;

  void eval_gpu(const std::vector<array>& inputs, array& out) override {
    eval_on_gpu(*this, inputs, {&out, 1});
  }
};

class FusedPrimitive : public mlx::core::Primitive {
 public:
  using Primitive::Primitive;

  void eval_gpu(const std::vector<array>& inputs, std::vector<array>& outputs) override {
    eval_on_gpu(*this, inputs, outputs);
  }
};

} // namespace zmlx
