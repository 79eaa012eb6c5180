// Products of the same vector that follow one another in a stream, as one launch of the pool: the projections of
// attention, a router beside a shared expert.
//
// Idea:   whoever builds the graph is ahead of the stream, so when a product's turn comes those behind it are known. The
//         first runs with them, and their own turns find it done.
// Safety: what joins needs nothing that is not there when the first runs: its vector is the very array of the first, and
//         its other inputs had their values when the graph was built (note_available). Its result has memory of its
//         own, which no task before it knows of: it was free when it was allocated, behind them.
// Bits:   a column's do not depend on who runs beside it.

#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/columns.h"
#include "cpu/task.h"

namespace zmlx::cpu {

// A product, until it has run.
struct Member {
  ColumnWork work;
  bool done{false}; // its stream's thread alone knows
};

class Neighbours {
 public:
  Neighbours(mlx::core::Stream stream, const mlx::core::array& x, std::shared_ptr<Member> first);

  // False where `member`, of these inputs, of which the first is the vector, has to run by itself.
  bool join(mlx::core::Stream stream, const std::vector<mlx::core::array>& inputs, std::shared_ptr<Member> member);

  // Runs all that have joined; nobody joins afterwards.
  void run();

 private:
  std::mutex mutex_;
  mlx::core::Stream stream_;
  std::optional<mlx::core::array> x_; // held, so that its id is nobody else's; none once it runs
  std::vector<std::shared_ptr<Member>> members_;
};

// Those that the calling thread enqueued last, if they have not begun.
std::weak_ptr<Neighbours>& latest_neighbours();

// Enqueues the product that `prepare(inputs, out)` describes, a ColumnWork; inputs[0] is what is multiplied.
template <typename Prepare>
void dispatch_columns(
    mlx::core::Stream stream,
    const char* name,
    const std::vector<mlx::core::array>& inputs,
    mlx::core::array& out,
    Prepare prepare) {
  if (!all_in_place(inputs)) {
    return dispatch_task(stream, name, inputs, out, [prepare = std::move(prepare)](auto& in, auto& out) {
      ColumnWork work = prepare(in, out);
      const ColumnWork* const works[] = {&work};
      run_columns(works);
    });
  }
  if (!allocate(stream, inputs, out)) {
    return;
  }
  auto member = std::make_shared<Member>(prepare(inputs, out));
  auto& latest = latest_neighbours();
  if (auto neighbours = latest.lock(); neighbours && neighbours->join(stream, inputs, member)) {
    return dispatch(stream, name, [member = std::move(member)] {
      if (!member->done) {
        const ColumnWork* const works[] = {&member->work};
        run_columns(works);
      }
    });
  }
  auto neighbours = std::make_shared<Neighbours>(stream, inputs[0], std::move(member));
  latest = neighbours;
  dispatch(stream, name, [neighbours = std::move(neighbours)] { neighbours->run(); });
}

} // namespace zmlx::cpu
