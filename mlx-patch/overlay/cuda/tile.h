// How the lines of a product are divided among blocks, and what a block needs.

#pragma once

#include <cstddef>
#include <cstdint>

namespace zmlx::on_cuda {

// Shared memory that a block may have on the machines that the kernels are for.
inline constexpr size_t kMostShared = 227 * 1024;

// A line of the product: the row of x that it is of, and the row of y that it becomes.
struct Line {
  uint32_t from, to;
};

// Lines of one expert, as many as a block multiplies; or none.
struct Tile {
  uint32_t expert, first, lines;
};

inline constexpr int kTileLines = 64;

// What else a block has (grouped.cuh): rows of weights, threads, values along K in a step, steps whose x lies in shared memory.
inline constexpr int kBlockRows = 128;
inline constexpr int kGroupedThreads = 128;
inline constexpr int kStep = 64;
inline constexpr int kStages = 4;

// Bytes of codes that a block fetches of a row at once, and for how many of these there is room.
inline constexpr int kCodeBytes = 64;

constexpr int code_pieces(int bits) {
  return bits == 4 ? 3 : 4;
}

// Whether what multiplies many lines, or reads by bulk copies, is for affine weights of these bits.
constexpr bool is_common_width(int bits) {
  return bits == 4 || bits == 8;
}

// Lines from which on they are grouped by expert: below, experts have hardly two lines, and kernels for one are faster.
inline constexpr int64_t kGroupedFrom = 64;

// Rows of weights are a multiple of this: outputs that are written together.
inline constexpr int kRowsTogether = 8;

// Shared memory of a block: x of some steps, codes of its rows, and their scales, of mode 'affine' with biases or 'mxfp4'.
constexpr size_t grouped_shared_bytes(bool affine, int bits, int group_size, int64_t K) {
  int64_t of_group = affine ? 4 : 1;
  return kStages * kTileLines * kStep * 2 + code_pieces(bits) * kBlockRows * kCodeBytes +
      kBlockRows * (K / group_size) * of_group;
}

// Whether there is a product of many lines by such weights [N, K], 'affine' or 'mxfp4', that was held to stock on a device, in
// bfloat16 or float16. Others take the kernels for single lines, or stock's.
constexpr bool has_grouped_product(bool is_bfloat16, bool affine, int bits, int group_size, int64_t N, int64_t K) {
  return (affine ? is_common_width(bits) : is_bfloat16) && N % kRowsTogether == 0 &&
      grouped_shared_bytes(affine, bits, group_size, K) <= kMostShared;
}

// Blocks that have all rows of so many matrices [N, K].
constexpr unsigned blocks_of(int N, int matrices) {
  int rows = kBlockRows / matrices;
  return (N + rows - 1) / rows;
}

// Tiles that there is room for, whatever the lines of each expert are.
inline int64_t num_tiles(int64_t lines, int64_t num_experts) {
  return lines / kTileLines + num_experts;
}

} // namespace zmlx::on_cuda
