// Rows of x as a kernel stores them, kept by a thread from one task of a launch to the next.
//
// Idea:   a launch has some tasks a thread, most of which begin with the same vector, or with those of the same few
//         experts: putting it into the order in which weights are unpacked, and adding it up by groups, is a few per cent
//         of a task of 64 columns.
// Safety: what is kept is the launch's, which changes no x. A kernel that is called outside of a launch stores its own.

#pragma once

#include <cstdint>

namespace zmlx::cpu {

// A number that no other launch of the process has; never 0.
uint64_t new_launch();

// While it lives, what the calling thread does is part of a launch.
class PartOfLaunch {
 public:
  explicit PartOfLaunch(uint64_t launch);
  ~PartOfLaunch();
  PartOfLaunch(const PartOfLaunch&) = delete;
  PartOfLaunch& operator=(const PartOfLaunch&) = delete;

 private:
  uint64_t before_;
};

struct StoredX {
  void* data; // 64-byte aligned, until this thread's next call
  bool is_stored; // otherwise the caller stores it there
};

// Memory for a row x. `kind`, an address, and `group_size` stand for the way in which it is stored.
StoredX stored_x(const void* x, const void* kind, int group_size, int64_t bytes);

} // namespace zmlx::cpu
