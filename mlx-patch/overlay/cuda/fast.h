// `fast` precision on CUDA: what its kernels take (cuda/fast_rows.cuh). Everything else has the exact ones there too.

#pragma once

#include "cuda/tile.h"
#include "zmlx/support.h"

namespace zmlx::on_cuda {

// Whether rows of K values are whole pieces of 128 bytes, of groups each, and their vector fits into shared memory as digits.
constexpr bool is_fast(Precision precision, int64_t K, int bits, int group_size) {
  return precision == Precision::Fast && is_common_width(bits) && K % (1024 / bits) == 0 && K % group_size == 0 &&
      static_cast<size_t>(K) * 5 <= kMostShared / 2;
}

} // namespace zmlx::on_cuda
