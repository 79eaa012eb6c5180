#include "cpu/qmm.h"
namespace zmlx::cpu {
const Kernels* avx2_kernels() {
  return nullptr;
}
} // namespace zmlx::cpu
