#include "metal/host.h"

#include <filesystem>
#include <stdexcept>

#include "mlx/allocator.h"
#include "zmlx/metal_source.h"

namespace zmlx::on_metal {

using namespace mlx::core;

namespace {

// The kernels compiled ahead of time, where the build has put them; empty where there are none.
const std::string& metallib() {
  static const std::string path = [] {
#ifdef ZMLX_KERNELS_METALLIB
    std::error_code unreadable;
    if (std::filesystem::exists(ZMLX_KERNELS_METALLIB, unreadable)) {
      return std::string(ZMLX_KERNELS_METALLIB);
    }
#endif
    return std::string();
  }();
  return path;
}

std::string source(const Kernel& kernel) {
  std::string text = "#define ZMLX_NO_INSTANCES 1\n";
  text += metal_source(kernel.file);
  // signs of copyright in comments; Metal would read nothing at all
  std::erase_if(text, [](unsigned char c) { return c > 126; });
  text += "\ntemplate [[host_name(\"" + kernel.name + "\")]] [[kernel]] decltype(" + kernel.instance + ") " +
      kernel.instance + ";\n";
  return text;
}

} // namespace

MTL::ComputePipelineState* pipeline(metal::Device& d, const Kernel& kernel) {
  auto* library = metallib().empty() ? d.get_library("zmlx_" + kernel.name, [&] { return source(kernel); })
                                     : d.get_library("zmlx", metallib());
  return d.get_kernel(kernel.name, library);
}

const char* type_name(Dtype dtype) {
  if (dtype == float32) {
    return "float";
  } else if (dtype == float16) {
    return "float16_t";
  } else if (dtype == bfloat16) {
    return "bfloat16_t";
  }
  throw std::invalid_argument("the Metal kernels compute in float32, float16 or bfloat16");
}

void allocate(array& out) {
  out.set_data(allocator::malloc(out.nbytes()));
}

MTL::Size row_group(int size) {
  constexpr int simdgroup = 32, reads = 4;
  return MTL::Size((size + simdgroup * reads - 1) / (simdgroup * reads) * simdgroup, 1, 1);
}

} // namespace zmlx::on_metal
