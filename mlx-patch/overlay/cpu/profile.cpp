#include "cpu/profile.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

namespace zmlx::cpu {

namespace {

struct Recording {
  explicit Recording(int64_t capacity) : rows(capacity) {}
  std::vector<ProfileRow> rows;
  std::atomic<int64_t> next{0};
};

std::atomic<Recording*> recording{nullptr};
std::atomic<int> writers{0}; // who may write to it

int32_t this_thread() {
  static std::atomic<int32_t> threads{0};
  thread_local int32_t id = threads++;
  return id;
}

} // namespace

namespace profile_detail {

std::atomic<bool> on{false};

const char*& current_op() {
  thread_local const char* name = nullptr;
  return name;
}

int64_t now() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

void add(const char* name, Span kind, int64_t begin, int64_t tasks) {
  writers.fetch_add(1);
  if (Recording* t = recording.load()) {
    int64_t row = t->next.fetch_add(1, std::memory_order_relaxed);
    if (row < static_cast<int64_t>(t->rows.size())) {
      t->rows[row] = {name, kind, this_thread(), begin, now(), tasks};
    }
  }
  writers.fetch_sub(1);
}

} // namespace profile_detail

using namespace profile_detail;

void ProfileSpan::start(Span kind, int64_t tasks, const char* name) {
  kind_ = kind;
  tasks_ = tasks;
  if (kind == Span::Op) {
    current_op() = name;
  }
  name_ = name ? name : current_op();
  begin_ = now();
}

void ProfileSpan::finish() {
  if (kind_ == Span::Op) {
    current_op() = nullptr;
  }
  if (kind_ != Span::Part || tasks_ > 0) {
    add(name_, kind_, begin_, tasks_);
  }
}

void profile_start(int64_t capacity) {
  profile_stop();
  recording = new Recording(capacity);
  on = true;
}

ProfileRows profile_stop() {
  on = false;
  std::unique_ptr<Recording> t(recording.exchange(nullptr));
  if (!t) {
    return {{}, 0};
  }
  while (writers.load() > 0) {
    std::this_thread::yield();
  }
  int64_t wanted = t->next;
  int64_t kept = std::min<int64_t>(wanted, t->rows.size());
  t->rows.resize(kept);
  return {std::move(t->rows), wanted - kept};
}

} // namespace zmlx::cpu
