// Functions of the driver, which no library of the toolkit exports.

#pragma once

#include <stdexcept>
#include <string>

#include "cuda/memory.h"

namespace zmlx::on_cuda {

template <typename F>
F driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = {};
  check(cudaGetDriverEntryPointByVersion(name, &function, CUDART_VERSION, cudaEnableDefault, &found));
  if (!function) {
    throw std::runtime_error(std::string("CUDA: the driver has no ") + name);
  }
  return reinterpret_cast<F>(function);
}

} // namespace zmlx::on_cuda
