#include "cpu/neighbours.h"

namespace zmlx::cpu {

using mlx::core::array;
using mlx::core::Stream;

namespace {

// More would be no shorter.
constexpr size_t kMost = 8;

} // namespace

Neighbours::Neighbours(Stream stream, const array& x, std::shared_ptr<Member> first) : stream_(stream) {
  // An array that is still part of a graph is not for the stream's thread to let go of.
  if (!x.has_primitive() && !x.is_tracer()) {
    x_ = x;
  }
  members_.push_back(std::move(first));
}

bool Neighbours::join(Stream stream, const std::vector<array>& inputs, std::shared_ptr<Member> member) {
  for (size_t i = 1; i < inputs.size(); i++) {
    if (inputs[i].status() != array::Status::available) {
      return false;
    }
  }
  std::lock_guard<std::mutex> lock(mutex_);
  if (!x_ || x_->id() != inputs[0].id() || stream != stream_ || members_.size() == kMost) {
    return false;
  }
  members_.push_back(std::move(member));
  return true;
}

void Neighbours::run() {
  std::optional<array> x;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    x.swap(x_);
  }
  std::vector<const ColumnWork*> works;
  for (auto& member : members_) {
    works.push_back(&member->work);
  }
  run_columns(works);
  for (auto& member : members_) {
    member->done = true;
  }
}

std::weak_ptr<Neighbours>& latest_neighbours() {
  static thread_local std::weak_ptr<Neighbours> latest;
  return latest;
}

} // namespace zmlx::cpu
