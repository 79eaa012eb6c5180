// Fast products of bf16 by products of tiles (AMX_BF16); fast_amx.h has idea, layout, bound and limits.

#include "cpu/fast_amx.h"
#include "cpu/qmm_avx512.h"

namespace zmlx::cpu {

namespace {

// From so many rows on unpacking into tiles pays.
constexpr int kManyRows = 4;

} // namespace

void fast_amx(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  BlockKernel tiles = m >= kManyRows ? tile_kernel<HardwareTiles>(q) : nullptr;
  return (tiles ? tiles : fast_avx512_bf16)(q, n0, n1, m, xs, ys);
}

} // namespace zmlx::cpu
