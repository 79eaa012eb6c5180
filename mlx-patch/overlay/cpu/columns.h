// Products as work of the pool: their columns cut into tasks, several products together where they do not need each other.

#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "cpu/operands.h"

namespace zmlx::cpu {

// Runs of rows, each with a matrix of as many columns. `work` is a rough count of multiply-adds.
struct ColumnWork {
  int64_t runs;
  int64_t columns;
  int64_t work;
  bool transpose;
  bool whole_blocks; // see want_whole_blocks
  bool same_matrix; // of all runs: those of a column block then follow one another
  int64_t most_columns; // of a task
  bool narrow; // see want_narrow
  std::function<void(int64_t run, int64_t n0, int64_t n1)> product;
};

constexpr int64_t kMostColumns = 4 * kColumnBlock;

// Whether `rows` rows in `runs` runs, fewer than three a run, go through a kernel that wants whole blocks of columns.
bool want_whole_blocks(Precision precision, int64_t rows, int64_t runs);

// Whether `blocks` whole blocks of columns would be so few tasks that a kernel for slices should cut them finer: runs of
// one row each, exact, transposed weights.
bool want_slices(Precision precision, bool transpose, int64_t rows, int64_t runs, int64_t blocks);

// Whether `rows` rows in `runs` runs go through a kernel that takes columns one by one: where threads differ in speed, or
// come late, many small tasks let the others do more.
bool want_narrow(Precision precision, bool transpose, int64_t rows, int64_t runs);

// Runs all of `works` as one launch of the pool.
void run_columns(std::span<const ColumnWork* const> works);

// Columns of one task where `columns` of them have to be shared out. A kernel prepares its rows of x, and starts a
// stream of prefetches, once a call: as many columns a call as still leave every thread tasks enough. A model with a
// large vocabulary decodes 3 to 6 % faster for it. Few columns for many rows are cut finer, so that no thread goes
// without.
int64_t columns_per_task(int64_t columns, int64_t work, bool transpose, bool narrow);

} // namespace zmlx::cpu
