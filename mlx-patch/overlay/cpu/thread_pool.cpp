#include "cpu/thread_pool.h"

#include "cpu/qmm.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace zmlx::cpu {

namespace {

// Below this many multiply-adds a wake-up costs more than it saves (a wake-up is 5 to 50 us, a scalar multiply-add
// about 1 ns, a vector one 0.05 ns).
constexpr int64_t kInlineWork = 1 << 17;
// How long an idle worker spins before it sleeps: the gap between two primitives of one decode step.
constexpr auto kSpin = std::chrono::microseconds(60);

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Job {
  TaskFn fn{nullptr};
  void* context{nullptr};
  int64_t tasks{0};
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::mutex error_mutex;

  void work() {
    for (;;) {
      int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) {
        return;
      }
      if (failed.load(std::memory_order_relaxed)) {
        continue;
      }
      try {
        fn(context, task);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) {
          error = std::current_exception();
        }
        failed = true;
      }
    }
  }
};

int num_cores() {
  return std::max(1u, std::thread::hardware_concurrency());
}

class Pool {
 public:
  // Never destroyed: a stream thread may outlive static destructors.
  static Pool& instance() {
    static Pool* pool = new Pool();
    return *pool;
  }

  void resize(int n) {
    std::lock_guard<std::mutex> owner(owner_);
    stop_workers();
    size_ = n > 0 ? n : num_cores();
  }

  int size() const {
    return size_;
  }

  void run(int64_t tasks, int64_t work, TaskFn fn, void* context) {
    std::unique_lock<std::mutex> owner(owner_, std::defer_lock);
    if (tasks <= 1 || work < kInlineWork || size_ <= 1 || inside_ || !owner.try_lock()) {
      for (int64_t task = 0; task < tasks; task++) {
        fn(context, task);
      }
      return;
    }
    if (workers_.empty()) {
      start_workers();
    }
    Job job;
    job.fn = fn;
    job.context = context;
    job.tasks = tasks;

    inside_ = true;
    job_ = &job;
    // Workers that join count themselves in before they read job_; see worker().
    epoch_.fetch_add(1);
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_mutex_);
      wake_.notify_all();
    }
    job.work();
    // No worker may enter any more; then wait for those inside.
    job_ = nullptr;
    while (active_.load() != 0) {
      cpu_relax();
    }
    inside_ = false;
    if (job.error) {
      std::rethrow_exception(job.error);
    }
  }

 private:
  Pool() : size_(num_cores()) {}

  void start_workers() {
    stop_ = false;
    for (int i = 1; i < size_; i++) {
      workers_.emplace_back([this, seen = epoch_.load()] { worker(seen); });
    }
  }

  void stop_workers() {
    {
      std::lock_guard<std::mutex> lock(sleep_mutex_);
      stop_ = true;
      wake_.notify_all();
    }
    for (auto& t : workers_) {
      t.join();
    }
    workers_.clear();
  }

  void worker(uint64_t seen) {
    inside_ = true;
    while (wait_for_work(seen)) {
      active_.fetch_add(1);
      if (Job* job = job_.load()) {
        job->work();
      }
      active_.fetch_sub(1);
    }
  }

  // Returns false when the pool stops.
  bool wait_for_work(uint64_t& seen) {
    auto deadline = std::chrono::steady_clock::now() + kSpin;
    for (int i = 0;; i++) {
      if (stop_) {
        return false;
      }
      uint64_t now = epoch_.load();
      if (now != seen) {
        seen = now;
        return true;
      }
      cpu_relax();
      if (i % 64 == 63 && std::chrono::steady_clock::now() > deadline) {
        break;
      }
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return stop_ || epoch_.load() != seen; });
    sleepers_.fetch_sub(1);
    seen = epoch_.load();
    return !stop_;
  }

  std::atomic<int> size_;
  std::mutex owner_; // held by the one caller that uses the workers
  std::vector<std::thread> workers_;
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> active_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  static thread_local bool inside_; // a task that calls pool_run again runs inline
};

thread_local bool Pool::inside_ = false;

struct AlignedFree {
  void operator()(void* p) const {
    std::free(p);
  }
};

struct Buffer {
  std::unique_ptr<void, AlignedFree> data;
  int64_t size{0};
};

} // namespace

void pool_resize(int n) {
  Pool::instance().resize(n);
#if defined(__unix__) || defined(__APPLE__)
  // MLX's own matmuls go through BLAS: give it the same number of threads when a number was asked for.
  if (n > 0) {
    using SetThreads = void (*)(int);
    if (auto set = reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"))) {
      set(n);
    }
  }
#endif
}

int pool_size() {
  return Pool::instance().size();
}

void pool_run(int64_t tasks, int64_t work, TaskFn fn, void* context) {
  Pool::instance().run(tasks, work, fn, context);
}

void* thread_scratch(Scratch slot, int64_t bytes) {
  static thread_local Buffer buffers[3];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.size < bytes) {
    int64_t size = (std::max(bytes, 2 * buffer.size) + 4095) / 4096 * 4096;
    buffer.data.reset();
    buffer.size = 0;
    buffer.data.reset(std::aligned_alloc(64, size));
    if (!buffer.data) {
      throw std::bad_alloc();
    }
    buffer.size = size;
  }
  return buffer.data.get();
}

void* kernel_scratch(int64_t bytes) {
  return thread_scratch(Scratch::Kernel, bytes);
}

} // namespace zmlx::cpu
