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

// Shared memory of a block: x of some steps, codes, scales and biases of its rows.
constexpr size_t grouped_shared_bytes(int bits, int group_size, int64_t K) {
  return kStages * kTileLines * kStep * 2 + code_pieces(bits) * kBlockRows * kCodeBytes +
      2 * kBlockRows * (K / group_size) * 2;
}

// Whether many lines, and what has bulk copies, have kernels for weights of these bits. Others take the kernels for single lines,
// or stock's.
constexpr bool is_common_width(int bits) {
  return bits == 4 || bits == 8;
}

// Blocks that have all rows of so many matrices [N, K].
constexpr unsigned blocks_of(int N, int matrices) {
  int rows = kBlockRows / matrices;
  return (N + rows - 1) / rows;
}

// Rows of weights are a multiple of this: outputs that are written together.
inline constexpr int kRowsTogether = 8;

// Tiles that there is room for, whatever the lines of each expert are.
inline int64_t num_tiles(int64_t lines, int64_t num_experts) {
  return lines / kTileLines + num_experts;
}

} // namespace zmlx::on_cuda
