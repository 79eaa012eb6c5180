// The step kernels of the instruction set that cpu/dispatch.cpp picked.

#include <cstring>

#include "cpu/step.h"

namespace zmlx::cpu {

const StepKernels& step_kernels() {
#if defined(__x86_64__)
  const char* name = isa();
  if (!std::strncmp(name, "avx512", 6) || !std::strcmp(name, "amx")) {
    return *avx512_step_kernels();
  }
  if (!std::strcmp(name, "avx2")) {
    return *avx2_step_kernels();
  }
#endif
  return *scalar_step_kernels();
}

} // namespace zmlx::cpu
