// The products of a warpgroup on Hopper's tensor cores: 64 rows of weights, out of registers, by 16 to 64 rows of x in shared
// memory. A step of 16 along K gives the same bits as mma.m16n8k16 does for each part of it (tests/cuda/grouped.cu).

#pragma once

#include "cuda/mma.cuh"

namespace zmlx::on_cuda {

// Whether this is compiled for a chip that has them: sm_90a, and not sm_90.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;
#endif

// Where rows of 64 values lie in shared memory: 128 bytes each, whose pieces of 16 are in the order of `piece ^ row % 8`, eight
// rows at 1,024 bytes.
__device__ inline uint64_t rows_in_shared(const char* shared) {
  uint64_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return (at & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

__device__ inline void wgmma_begin() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ inline void wgmma_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// What threads have written to shared memory becomes visible to the products.
__device__ inline void show_shared_to_wgmma() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Until all products are done, whose sums are `d`.
template <int kCount>
__device__ void wgmma_wait(float (&d)[2][kCount]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kCount; i++) {
    asm volatile("" : "+f"(d[0][i]), "+f"(d[1][i])::"memory");
  }
#endif
}

// d += a * rows: d[4 * j + i] is what d[i] of mma() is for the j-th eight rows of x.
#define ZMLX_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ZMLX_D16(i) ZMLX_D4(i), ZMLX_D4(i + 4), ZMLX_D4(i + 8), ZMLX_D4(i + 12)
#define ZMLX_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows)
#define ZMLX_WGMMA(type)                                                                                                  \
  if constexpr (kCount == 8) {                                                                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type " {%0,%1,%2,%3,%4,%5,%6,%7}, "               \
                 "{%8,%9,%10,%11}, %12, 1, 1, 1, 0;"                                                                      \
                 : ZMLX_D4(0), ZMLX_D4(4)                                                                                 \
                 : ZMLX_A);                                                                                               \
  } else if constexpr (kCount == 16) {                                                                                    \
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,"   \
                 "%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"                                                  \
                 : ZMLX_D16(0)                                                                                            \
                 : ZMLX_A);                                                                                               \
  } else if constexpr (kCount == 24) {                                                                                    \
    asm volatile("wgmma.mma_async.sync.aligned.m64n48k16.f32." type "." type " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,"   \
                 "%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23}, {%24,%25,%26,%27}, %28, 1, 1, 1, 0;"                  \
                 : ZMLX_D16(0), ZMLX_D4(16), ZMLX_D4(20)                                                                  \
                 : ZMLX_A);                                                                                               \
  } else {                                                                                                                \
    static_assert(kCount == 32);                                                                                          \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,"   \
                 "%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "                     \
                 "{%32,%33,%34,%35}, %36, 1, 1, 1, 0;"                                                                    \
                 : ZMLX_D16(0), ZMLX_D16(16)                                                                              \
                 : ZMLX_A);                                                                                               \
  }

template <int kCount>
__device__ void wgmma(float (&d)[kCount], const uint32_t (&a)[4], uint64_t rows, const __nv_bfloat16*) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  ZMLX_WGMMA("bf16")
#endif
}

template <int kCount>
__device__ void wgmma(float (&d)[kCount], const uint32_t (&a)[4], uint64_t rows, const __half*) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  ZMLX_WGMMA("f16")
#endif
}

#undef ZMLX_WGMMA
#undef ZMLX_A
#undef ZMLX_D16
#undef ZMLX_D4

} // namespace zmlx::on_cuda
