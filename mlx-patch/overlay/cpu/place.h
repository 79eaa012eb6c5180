// The shared state of one parallel_for: who has which tasks, and who is at them.
//
// Idea:   the tasks are cut into one range per thread, so that a thread takes its own by an increment of a line that is
//         in its cache, and a row of weights meets the same thread every time. Whoever has finished takes from the
//         others: nobody waits for a thread that has not come yet.
// Safety: a thread that wants to help marks its share first and then looks whether the place is open, and a caller closes
//         the place first and then looks for marks (both sequentially consistent): a place is never filled anew while
//         anybody reads it.

#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "cpu/profile.h"
#include "cpu/thread_pool.h"

namespace zmlx::cpu {

constexpr int kMaxThreads = 1024; // of a pool

enum Presence : uint32_t { kAway, kHere, kAwaited };

// One thread's part in a place, in a cache line of its own.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end{0};
  std::atomic<uint32_t> presence{kAway};
};

class Place {
 public:
  std::atomic<bool> taken{false}; // by a caller

  // By the caller, while the place is closed.
  void fill(int64_t tasks, int threads, TaskFn fn, void* context, const char* name) {
    if (!shares_) {
      shares_ = std::make_unique<Share[]>(kMaxThreads);
    }
    fn_ = fn;
    context_ = context;
    name_ = name;
    parts_ = static_cast<int>(tasks < threads ? tasks : threads);
    for (int i = 0; i < parts_; i++) {
      shares_[i].next.store(tasks * i / parts_, std::memory_order_relaxed);
      shares_[i].end = tasks * (i + 1) / parts_;
    }
    failed_.store(false, std::memory_order_relaxed);
  }

  int parts() const {
    return parts_;
  }
  Share& share(int thread) {
    return shares_[thread];
  }

  // Runs the tasks of `thread`, then those that others have not begun, for as long as `more()`; true if it ran any.
  template <typename More>
  bool work(int thread, More&& more) {
    bool worked = false;
    ProfileSpan span(Span::Part, 0, name_);
    for (int i = 0; i < parts_; i++) {
      int owner = thread < parts_ ? thread + i : i;
      Share& share = shares_[owner < parts_ ? owner : owner - parts_];
      while (share.next.load(std::memory_order_relaxed) < share.end) {
        int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
        if (task >= share.end) {
          break;
        }
        worked = true;
        span.count();
        run(task);
        if (!more()) {
          return true;
        }
      }
    }
    return worked;
  }

  std::exception_ptr take_error() {
    return failed_.load(std::memory_order_relaxed) ? std::exchange(error_, nullptr) : nullptr;
  }

 private:
  void run(int64_t task) {
    if (failed_.load(std::memory_order_relaxed)) {
      return;
    }
    try {
      fn_(context_, task);
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) {
        error_ = std::current_exception();
      }
      failed_ = true;
    }
  }

  // What everybody reads.
  alignas(64) TaskFn fn_{nullptr};
  void* context_{nullptr};
  const char* name_{nullptr}; // where there is a profile
  int parts_{0};
  std::atomic<bool> failed_{false};
  std::unique_ptr<Share[]> shares_;
  alignas(64) std::mutex error_mutex_;
  std::exception_ptr error_;
};

} // namespace zmlx::cpu
