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

// What else a block has (grouped.cuh): rows of weights, threads, values along K in a step, steps that lie in shared memory.
inline constexpr int kBlockRows = 128;
inline constexpr int kGroupedThreads = 128;
inline constexpr int kStep = 64;
inline constexpr int kStages = 4;

// Rows of codes lie 16 bytes further apart than they are long, so that eight of them meet no bank twice.
constexpr int code_stride(int bits) {
  return kStep * bits / 8 + 16;
}

// Shared memory of a block: x and codes of its steps, scales and biases of its rows.
constexpr size_t grouped_shared_bytes(int bits, int group_size, int64_t K) {
  return kStages * (kTileLines * kStep * 2 + kBlockRows * code_stride(bits)) + 2 * kBlockRows * (K / group_size) * 2;
}

// Tiles that there is room for, whatever the lines of each expert are.
inline int64_t num_tiles(int64_t lines, int64_t num_experts) {
  return lines / kTileLines + num_experts;
}

} // namespace zmlx::on_cuda
