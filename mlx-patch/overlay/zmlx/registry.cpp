// What is compiled in, where it runs, and why not.

#include <algorithm>
#include <sstream>

#include "cpu/qmm.h"
#include "cpu/thread_pool.h"
#include "zmlx/exports.h"
#include "zmlx/quant_params.h"

namespace zmlx {

using namespace mlx::core;

namespace {

[[maybe_unused]] const bool exports_registered = register_exports();

struct Entry {
  const char* name;
  bool quantized;
};

constexpr Entry kPrimitives[] = {
    {"gather_qmm_swiglu", true},
    {"gather_qmm_combine", true},
    {"moe_router", false},
    {"quantized_matmul", true},
    {"rms_norm", false},
    {"qk_norm_rope", false},
    {"attention", false},
    {"greedy_token", false},
};

std::string known_names() {
  std::string names;
  for (auto& e : kPrimitives) {
    names += names.empty() ? e.name : std::string(", ") + e.name;
  }
  return names;
}

} // namespace

std::vector<std::string> primitives() {
  std::vector<std::string> names;
  for (auto& e : kPrimitives) {
    names.emplace_back(e.name);
  }
  return names;
}

Support supports(
    const std::string& primitive,
    Device device,
    Dtype dtype,
    int bits,
    int group_size,
    const std::string& mode,
    bool transpose) {
  auto entry =
      std::find_if(std::begin(kPrimitives), std::end(kPrimitives), [&](auto& e) { return primitive == e.name; });
  if (entry == std::end(kPrimitives)) {
    return {false, "there is no primitive '" + primitive + "', only " + known_names()};
  }
  if (device != Device::cpu) {
    return {false, "no gpu kernel for " + primitive + " is compiled into this build"};
  }
#if defined(MLX_USE_ACCELERATE) || defined(__APPLE__)
  return {false, "the cpu kernels reproduce MLX's portable cpu backend, not the one with Accelerate"};
#endif
  if (dtype != float32 && dtype != float16 && dtype != bfloat16) {
    std::ostringstream reason;
    reason << primitive << " computes in float32, float16 or bfloat16, not in " << dtype;
    return {false, reason.str()};
  }
#if defined(__aarch64__)
  if (entry->quantized && dtype == float32) {
    return {false, "compilers fuse the multiplies and adds of stock's float32 loop on this processor, in places of their own choosing"};
  }
#endif
  if (primitive == "attention" && dtype == float32) {
    return {false, "stock multiplies float32 matrices by BLAS, in an order of its own: attention in float32 is fast only"};
  }
  if (entry->quantized) {
    try {
      quant_params(primitive, group_size, bits, mode, transpose);
    } catch (const std::invalid_argument& e) {
      return {false, e.what()};
    }
    if (primitive == "gather_qmm_combine" && !transpose) {
      return {false, "gather_qmm_combine takes transposed weights only"};
    }
  }
  return {true, ""};
}

void set_num_threads(int n) {
  cpu::pool_resize(n);
}

int num_threads() {
  return cpu::pool_size();
}

std::string cpu_isa() {
  return cpu::isa();
}

bool set_cpu_isa(const std::string& isa) {
  return cpu::set_isa(isa.c_str());
}

} // namespace zmlx
