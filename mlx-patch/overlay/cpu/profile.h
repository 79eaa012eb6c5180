// What the CPU's threads do while a profile is taken: a span for each op of a stream, for each launch of the pool in it,
// and for each thread's part in a launch.
//
// Off, a span is one load of a flag that nobody writes. On, it is two readings of the clock and a row of a table that
// was allocated before; what does not fit is counted.

#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace zmlx::cpu {

enum class Span : uint8_t {
  Op, // a primitive's work on its stream
  Launch, // a parallel_for that went to the pool
  Inline, // one that stayed on the calling thread
  Part, // a thread's share of a launch
};

struct ProfileRow {
  const char* name; // of the primitive; null outside of one
  Span kind;
  int32_t thread; // numbered in the order in which they were first seen
  int64_t begin; // nanoseconds
  int64_t end;
  int64_t tasks; // of a launch; that a part ran; of an op: when it was enqueued, 0 where that was before the profile
};

struct ProfileRows {
  std::vector<ProfileRow> rows; // in no order
  int64_t dropped;
};

// Starts a profile of at most `capacity` spans; one that is being taken is forgotten.
void profile_start(int64_t capacity);
// Ends it. Spans that have not ended are not in it.
ProfileRows profile_stop();

namespace profile_detail {
extern std::atomic<bool> on;
const char*& current_op(); // of this thread
int64_t now();
void add(const char* name, Span kind, int64_t begin, int64_t tasks);
} // namespace profile_detail

// Nanoseconds while a profile is taken, otherwise 0.
inline int64_t profile_clock() {
  return profile_detail::on.load(std::memory_order_relaxed) ? profile_detail::now() : 0;
}

class ProfileSpan {
 public:
  // Without a name it has that of the op around it. `tasks` as in ProfileRow.
  explicit ProfileSpan(Span kind, int64_t tasks = 0, const char* name = nullptr) {
    if (profile_detail::on.load(std::memory_order_relaxed)) [[unlikely]] {
      start(kind, tasks, name);
    }
  }
  ~ProfileSpan() {
    if (begin_) [[unlikely]] {
      finish();
    }
  }
  ProfileSpan(const ProfileSpan&) = delete;
  ProfileSpan& operator=(const ProfileSpan&) = delete;

  void count() {
    tasks_++;
  }
  const char* name() const {
    return name_;
  }

 private:
  void start(Span kind, int64_t tasks, const char* name);
  void finish();

  const char* name_{nullptr};
  int64_t begin_{0};
  int64_t tasks_{0};
  Span kind_{Span::Op};
};

} // namespace zmlx::cpu
