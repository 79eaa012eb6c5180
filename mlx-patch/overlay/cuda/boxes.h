// Matrices as bulk copies take boxes out of them (cuda/copies.cuh).

#pragma once

#include <cuda.h>

#include <cstdint>

namespace zmlx::on_cuda {

// Of `rows` rows one behind the other, boxes of kPieceBytes bytes of `box_rows` of them, which are swizzled as cuda/row_tiles.cuh
// says. Rows are a multiple of 16 bytes long, as is the address.
CUtensorMap boxes_of(const void* matrix, int64_t rows, int64_t row_bytes, int box_rows);

} // namespace zmlx::on_cuda
