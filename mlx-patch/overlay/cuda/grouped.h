// Products over experts of many lines, on the host: the launch that groups the lines, and the one that multiplies.

#pragma once

#include <optional>

#include "cuda/host.h"

namespace zmlx::on_cuda {

// Lines in the order of their experts, on the device.
struct Groups {
  array tiles; // of Tile
  array lines; // of Line
  int64_t num_tiles;
};

// `lhs`, where there is one, says for each of `rhs` which x it is of, or for all of them if it has one element; each stands
// for M lines.
Groups group_by_expert(const std::optional<array>& lhs, const array& rhs, int M, int num_experts, Encoder& encoder);

// A quantized matrix, or one of each expert; `biases` are those of mode 'affine', `bias` is added to what comes out.
struct Matrices {
  const array &w, &scales;
  const array* biases;
  int bits, group_size;
  const array* bias = nullptr;
};

// y [lines, N] = x @ matrices, for the lines of `groups`, or for all rows of x where there are none. For shapes that stock
// multiplies by `qmm_sm80` or `qmm_naive`, with their bits, where has_grouped_product (tile.h) says so.
void multiply_lines(const array& x, const Matrices& matrices, const Groups* groups, array& y, Encoder& encoder);

} // namespace zmlx::on_cuda
