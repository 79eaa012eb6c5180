// Which fast kernel a call takes where there are tiles of bf16 (AMX_BF16); fast_amx.h has that for many rows.
//
// Processors with tiles so far do vdpbf16ps at about half the rate of two fused multiply-adds, so that one or two rows
// meet 4-bit weights faster as f32: 123 GB/s against 110 on 16 cores of a Xeon, 86 against 68 for two rows
// (benchmarks/runs/2026-11-21-xeon-16core/kernels.txt).

#include "cpu/fast_amx.h"
#include "cpu/qmm_avx512.h"

namespace zmlx::cpu {

namespace {

// From so many rows on unpacking into tiles pays (the same run).
constexpr int kManyRows = 3;

} // namespace

void fast_amx(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* xs, void* const* ys) {
  BlockKernel tiles = m >= kManyRows ? tile_kernel<HardwareTiles>(q) : nullptr;
  BlockKernel few = q.bits == 4 ? fast_avx512 : fast_avx512_bf16;
  return (tiles ? tiles : few)(q, n0, n1, m, xs, ys);
}

} // namespace zmlx::cpu
