#include "cpu/qmm.h"
namespace zmlx::cpu {
const Kernels* avx512_kernels() {
  return nullptr;
}
} // namespace zmlx::cpu
