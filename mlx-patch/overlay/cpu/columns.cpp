#include "cpu/columns.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/stored_x.h"
#include "cpu/thread_pool.h"

namespace zmlx::cpu {

namespace {

// A task: columns n0 .. n1 of one run.
struct Piece {
  int work;
  int64_t run;
  int64_t n0;
  int64_t n1;
};

// Below half a block every task costs more than it saves, so that only threads without any are a reason for it.
constexpr int64_t kEvenPerThread = 4;
constexpr int64_t kFewestPerThread = 2;
// Where it does not (want_narrow).
constexpr int64_t kNarrowPerThread = 8;

// With so many blocks a thread it does not matter who has one more.
constexpr int64_t kManyPerThread = 8;

// Calls f(piece) for the pieces of `columns` columns of all runs, in the order in which a thread should meet them.
template <typename F>
void for_each_piece(const ColumnWork& work, int index, int64_t columns, F f) {
  int64_t blocks = (work.columns + columns - 1) / columns;
  for (int64_t i = 0; i < work.runs * blocks; i++) {
    int64_t run = work.same_matrix ? i % work.runs : i / blocks;
    int64_t n0 = (work.same_matrix ? i / work.runs : i % blocks) * columns;
    f(Piece{index, run, n0, std::min(n0 + columns, work.columns)});
  }
}

// The columns of the pieces into which `blocks` blocks, fewer than threads, are cut so that the last thread is done first.
int64_t soonest_done(int64_t blocks, int64_t threads) {
  // Columns of a task and the time it takes, of one with a whole block (one row, 2048 deep, Zen 5).
  constexpr std::pair<int64_t, double> kTimes[] = {{kColumnBlock, 1.0}, {kColumnBlock / 2, 0.69}, {kColumnBlock / 4, 0.59}};
  int64_t best = kColumnBlock;
  double least = std::numeric_limits<double>::infinity();
  for (auto [columns, time] : kTimes) {
    int64_t pieces = blocks * (kColumnBlock / columns);
    double all = static_cast<double>((pieces + threads - 1) / threads) * time;
    if (all < least) {
      best = columns;
      least = all;
    }
  }
  return best;
}

// Whole blocks, as many for each thread, and those that are left over cut finer. The pool gives each thread neighbouring
// tasks: its whole blocks and its share of the others.
std::vector<Piece> deal(const std::vector<Piece>& blocks, int64_t threads) {
  int64_t each = blocks.size() / threads;
  int64_t dealt = each * threads;
  int64_t columns = soonest_done(blocks.size() - dealt, threads);
  std::vector<Piece> rest;
  for (size_t i = dealt; i < blocks.size(); i++) {
    for (int64_t n0 = blocks[i].n0; n0 < blocks[i].n1; n0 += columns) {
      rest.push_back({blocks[i].work, blocks[i].run, n0, std::min(n0 + columns, blocks[i].n1)});
    }
  }
  std::vector<Piece> pieces;
  int64_t left = rest.size();
  for (int64_t t = 0; t < threads; t++) {
    pieces.insert(pieces.end(), blocks.begin() + t * each, blocks.begin() + (t + 1) * each);
    pieces.insert(pieces.end(), rest.begin() + left * t / threads, rest.begin() + left * (t + 1) / threads);
  }
  return pieces;
}

} // namespace

bool want_whole_blocks(Precision precision, int64_t rows, int64_t runs) {
  return precision == Precision::Exact && kernels().wants_whole_blocks && rows < 3 * runs;
}

bool want_slices(Precision precision, bool transpose, int64_t rows, int64_t runs, int64_t blocks) {
  int64_t threads = pool_width();
  return precision == Precision::Exact && kernels().exact_slices && transpose && rows == runs && threads > 1 &&
      blocks < kEvenPerThread * threads;
}

bool want_narrow(Precision precision, bool transpose, int64_t rows, int64_t runs) {
  return precision == Precision::Fast && transpose && rows < 3 * runs;
}

int64_t columns_per_task(int64_t total, int64_t work, bool transpose, bool narrow) {
  constexpr int64_t kTasksPerThread = 32;
  int64_t threads = pool_width();
  int64_t columns = kColumnBlock;
  while (columns < kMostColumns && total / (2 * columns) >= kTasksPerThread * threads) {
    columns *= 2;
  }
  if (transpose && threads > 1 && work >= kInlineWork) {
    auto tasks = [&] { return (total + columns - 1) / columns; };
    while (columns > kColumnBlock / 2 && tasks() < kEvenPerThread * threads) {
      columns /= 2;
    }
    while (columns > kTransposedBlock && tasks() < (narrow ? kNarrowPerThread : kFewestPerThread) * threads) {
      columns /= 2;
    }
  }
  return columns;
}

void run_columns(std::span<const ColumnWork* const> works) {
  int64_t threads = pool_width();
  int64_t total = 0;
  int64_t all = 0;
  bool whole_blocks = true;
  for (auto work : works) {
    total += work->runs * work->columns;
    all += work->work;
    whole_blocks = whole_blocks && work->whole_blocks && work->transpose;
  }
  whole_blocks = whole_blocks && threads > 1 && all >= kInlineWork && total < kManyPerThread * threads * kColumnBlock;
  std::vector<Piece> pieces;
  for (int i = 0; i < static_cast<int>(works.size()); i++) {
    auto& work = *works[i];
    int64_t columns = work.whole_blocks ? std::max(kColumnBlock, columns_per_task(total, 0, true, false))
                                        : columns_per_task(total, all, work.transpose, work.narrow);
    for_each_piece(work, i, whole_blocks ? kColumnBlock : std::min(columns, work.most_columns), [&](const Piece& piece) {
      pieces.push_back(piece);
    });
  }
  if (whole_blocks) {
    pieces = deal(pieces, threads);
  }
  uint64_t launch = new_launch();
  parallel_for(pieces.size(), all, [&](int64_t task) {
    PartOfLaunch part(launch);
    const auto& piece = pieces[task];
    works[piece.work]->product(piece.run, piece.n0, piece.n1);
  });
}

} // namespace zmlx::cpu
