// Which instruction set the kernels use: the best that both the build and the machine have.

#include <atomic>
#include <cstring>
#include <initializer_list>

#include "cpu/qmm.h"
#include "cpu/tiles_permission.h"

namespace zmlx::cpu {

namespace {

const Kernels* usable(const char* isa) {
  if (!std::strcmp(isa, "scalar")) {
    return scalar_kernels();
  }
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  if (!std::strcmp(isa, "amx") && bf16 && request_tiles()) {
    return amx_kernels();
  }
  if (!std::strcmp(isa, "avx512bf16") && bf16) {
    return avx512_bf16_kernels();
  }
  if (!std::strcmp(isa, "avx512") && avx512) {
    return avx512_kernels();
  }
  if (!std::strcmp(isa, "avx2") && avx2) {
    return avx2_kernels();
  }
#elif defined(__aarch64__)
  if (!std::strcmp(isa, "neon")) {
    return neon_kernels();
  }
#endif
  return nullptr;
}

const Kernels* best() {
  for (const char* isa : {"amx", "avx512bf16", "avx512", "avx2", "neon"}) {
    if (const Kernels* k = usable(isa)) {
      return k;
    }
  }
  return scalar_kernels();
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> k{best()};
  return k;
}

} // namespace

const Kernels& kernels() {
  return *current().load(std::memory_order_relaxed);
}

bool set_isa(const char* isa) {
  const Kernels* k = usable(isa);
  if (k) {
    current() = k;
  }
  return k != nullptr;
}

const char* isa() {
  return kernels().isa;
}

} // namespace zmlx::cpu
