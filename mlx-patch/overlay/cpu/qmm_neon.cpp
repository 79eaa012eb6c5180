#include "cpu/qmm.h"
namespace zmlx::cpu {
const Kernels* neon_kernels() {
  return nullptr;
}
} // namespace zmlx::cpu
