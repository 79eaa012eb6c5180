#include "cpu/tiles_permission.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace zmlx::cpu {

#if defined(__x86_64__) && defined(__linux__)

namespace {

bool processor_has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    return false;
  }
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if ((d & kBf16) == 0 || (d & kTile) == 0) {
    return false;
  }
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0) {
    return false;
  }
  // Palette 1: at least 8 tiles of 16 rows of 64 bytes.
  if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) || b >> 16 < 8 || (b & 0xffff) < 64 || (c & 0xffff) < 16) {
    return false;
  }
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kTileState = 3u << 17; // configuration and data
  return (low & kTileState) == kTileState;
}

bool ask() {
  constexpr long kRequest = 0x1023; // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18; // XFEATURE_XTILEDATA
  return processor_has_tiles() && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

} // namespace

bool request_tiles() {
  static const bool granted = ask();
  return granted;
}

#else

bool request_tiles() {
  return false;
}

#endif

} // namespace zmlx::cpu
