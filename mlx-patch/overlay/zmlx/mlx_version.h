// What differs between the versions of MLX that zmlx is compiled against. No other file asks which one it is.
//
// This file holds facts and nothing else, so that units with instruction sets of their own may include it;
// zmlx/mlx_api.h hides the differences in MLX's functions.

#pragma once

#include "mlx/version.h"

#if MLX_VERSION_NUMERIC != 32002 && MLX_VERSION_NUMERIC != 32004
#error "zmlx does not know this version of MLX: read what changed in it, then extend mlx_version.h and MLX_PIN"
#endif

// What the build has accepted; it also keeps the objects of two versions in one folder apart.
#if defined(ZMLX_MLX_VERSION_NUMERIC) && ZMLX_MLX_VERSION_NUMERIC != MLX_VERSION_NUMERIC
#error "the compiler finds another MLX than the one that the build has accepted"
#endif

// Since 0.32.4 allocator::malloc returns an owner, before a bare buffer, and gather_qmm takes a global scale before
// `sorted_indices`.
#define ZMLX_MLX_OWNED_DATA (MLX_VERSION_NUMERIC >= 32004)
#define ZMLX_MLX_GATHER_GLOBAL_SCALE (MLX_VERSION_NUMERIC >= 32004)

namespace zmlx::linked {

// Since 0.32.4, on the CPU:

// the e4m3 codes 0x7f and 0xff are NaN, before they were 480 and -480;
inline constexpr bool e4m3_has_nan = MLX_VERSION_NUMERIC >= 32004;

// sums of bfloat16, and of float16 where MLX has no vectors of it, are kept in float32 and rounded once, before they
// were rounded after every addition;
inline constexpr bool sums_in_float32 = MLX_VERSION_NUMERIC >= 32004;

// argmax takes the first NaN, before it passed over them.
inline constexpr bool argmax_takes_nan = MLX_VERSION_NUMERIC >= 32004;

// On Metal:

// the release whose kernels ours have been held against, addition by addition (crates/metal-bench).
inline constexpr bool metal_kernels_known = MLX_VERSION_NUMERIC == 32002;

// On CUDA:

// the release whose kernels ours have been held against, on an H200 (benchmarks/).
inline constexpr bool cuda_kernels_known = MLX_VERSION_NUMERIC == 32002;

} // namespace zmlx::linked
