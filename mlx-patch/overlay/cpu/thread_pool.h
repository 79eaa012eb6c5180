// One pool of worker threads for every CPU kernel of the overlay.
//
// Work is handed out in blocks from one atomic counter, the caller takes part, and workers that find nothing spin for
// a moment and then sleep. A second stream that calls while the pool is busy runs its own work inline: correct, and
// never more threads than asked for per stream.

#pragma once

#include <cstdint>
#include <type_traits>

namespace zmlx::cpu {

// 0: all cores. Takes effect at once; waits for work in progress.
void pool_resize(int n);
int pool_size();

using TaskFn = void (*)(void* context, int64_t task);

// Runs fn(context, 0 .. tasks - 1), each exactly once, and returns when all are done. The first exception that a task
// throws is rethrown here. `work` is a rough count of multiply-adds: little work stays on the calling thread.
void pool_run(int64_t tasks, int64_t work, TaskFn fn, void* context);

template <typename F>
void parallel_for(int64_t tasks, int64_t work, F&& f) {
  pool_run(
      tasks,
      work,
      [](void* context, int64_t task) { (*static_cast<std::remove_reference_t<F>*>(context))(task); },
      &f);
}

// A 64-byte aligned buffer of the calling thread that only grows; `slot` tells simultaneous users apart.
enum class Scratch { Kernel, Driver, Rows };
void* thread_scratch(Scratch slot, int64_t bytes);

} // namespace zmlx::cpu
