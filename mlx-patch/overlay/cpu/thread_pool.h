// One pool of worker threads for every CPU kernel of the overlay.
//
// Every thread has a range of a job's tasks and then takes from the others (cpu/place.h); the caller takes part. Several
// streams may call at once: each works on its own job and the workers go round them. Workers that find nothing spin for a
// moment and then sleep, and so does a caller whose last task is still with a worker.

#pragma once

#include <cstdint>
#include <type_traits>

namespace zmlx::cpu {

// 0: as many as the process may use; BLAS then gets back the number that it had at first. Workers stop after the task at
// hand, callers finish their work without them.
void pool_resize(int n);

// Threads that one caller works with, itself included, where there are processors for them: those that there are none for
// are not started. Fewer than asked for once threads could not be started.
int pool_size();

// Those of them that work at once: as many as there are processors for. What work is cut for.
int pool_width();

// How many processors there are for the pool, which is also what 0 means: asked when the pool is first used, and at every
// pool_resize. The default counts all.
void set_available_threads(int (*count)());

// Below this many multiply-adds a wake-up costs more than it saves (a wake-up is 5 to 50 us, a scalar multiply-add
// about 1 ns, a vector one 0.05 ns).
constexpr int64_t kInlineWork = 1 << 17;

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
enum class Scratch { Kernel, Driver, Rows, StoredX };
void* thread_scratch(Scratch slot, int64_t bytes);

} // namespace zmlx::cpu
