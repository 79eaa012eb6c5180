#include "cpu/thread_pool.h"

#include "cpu/float_environment.h"
#include "cpu/qmm.h"

#include <algorithm>
#include <array>
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
#include <pthread.h>
#endif

namespace zmlx::cpu {

namespace {

// How long a thread spins before it sleeps: the gap between two primitives of one decode step.
constexpr auto kSpin = std::chrono::microseconds(60);

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Spin {
 public:
  // Passes a moment; false when it is time to sleep.
  bool again() {
    cpu_relax();
    if (++rounds_ % 64 != 0) {
      return true;
    }
    auto now = std::chrono::steady_clock::now();
    if (rounds_ == 64) {
      end_ = now + kSpin;
    }
    return now < end_;
  }

 private:
  int rounds_{0};
  std::chrono::steady_clock::time_point end_;
};

struct Job {
  TaskFn fn{nullptr};
  void* context{nullptr};
  int64_t tasks{0};
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::mutex error_mutex;

  // Runs the next task; false when all have been taken.
  bool step() {
    int64_t task = next.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks) {
      return false;
    }
    if (failed.load(std::memory_order_relaxed)) {
      return true;
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
    return true;
  }
};

// Where a caller shows its job to the workers. One that wants to help counts itself in before it reads `job`, so a job
// may go once it is no longer shown and nobody is counted.
struct alignas(64) Place {
  std::atomic<bool> taken{false};
  std::atomic<Job*> job{nullptr};
  std::atomic<int> helpers{0};

  void wait_for_helpers() {
    for (Spin spin; helpers.load() != 0;) {
      if (!spin.again()) {
        // A helper may have lost its processor: leave it ours.
        for (int n = helpers.load(); n != 0; n = helpers.load()) {
          helpers.wait(n);
        }
        return;
      }
    }
  }

  void leave() {
    if (helpers.fetch_sub(1) == 1) {
      helpers.notify_all();
    }
  }
};

std::atomic<int (*)()> available_threads{nullptr};

int default_size() {
  auto count = available_threads.load();
  return std::max(1, count ? count() : static_cast<int>(std::thread::hardware_concurrency()));
}

class Pool {
 public:
  static Pool& instance() {
    // Never destroyed: a stream thread may outlive static destructors.
    static std::atomic<Pool*>& pool = first();
    return *pool.load(std::memory_order_acquire);
  }

  void resize(int n) {
    std::lock_guard<std::mutex> lock(workers_mutex_);
    stop_workers();
    size_ = n > 0 ? n : default_size();
  }

  int size() const {
    return size_;
  }

  void run(int64_t tasks, int64_t work, TaskFn fn, void* context) {
    Place* place = nullptr;
    if (tasks > 1 && work >= kInlineWork && size_ > 1 && !inside_) {
      if (!started_) {
        start_workers();
      }
      place = take_place();
    }
    if (!place) {
      for (int64_t task = 0; task < tasks; task++) {
        fn(context, task);
      }
      return;
    }
    Job job;
    job.fn = fn;
    job.context = context;
    job.tasks = tasks;

    inside_ = true;
    place->job = &job;
    jobs_.fetch_add(1, std::memory_order_relaxed);
    epoch_.fetch_add(1);
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_mutex_);
      wake_.notify_all();
    }
    while (job.step()) {
    }
    place->job = nullptr;
    jobs_.fetch_sub(1, std::memory_order_relaxed);
    place->wait_for_helpers();
    place->taken.store(false, std::memory_order_release);
    inside_ = false;
    if (job.error) {
      std::rethrow_exception(job.error);
    }
  }

 private:
  explicit Pool(int size) : size_(size) {}

  static std::atomic<Pool*>& first() {
    static std::atomic<Pool*> pool{new Pool(default_size())};
#if defined(__unix__) || defined(__APPLE__)
    // A forked child has no workers, and locks may be held by threads that it has not got: it starts afresh.
    pthread_atfork(nullptr, nullptr, [] {
      inside_ = false;
      pool = new Pool(pool.load()->size());
    });
#endif
    return pool;
  }

  // One of the places that callers share; none when too many streams work at once.
  Place* take_place() {
    for (auto& place : places_) {
      if (!place.taken.load(std::memory_order_relaxed) && !place.taken.exchange(true, std::memory_order_acquire)) {
        return &place;
      }
    }
    return nullptr;
  }

  void start_workers() {
    std::unique_lock<std::mutex> lock(workers_mutex_, std::try_to_lock);
    if (!lock || started_) {
      return; // someone else is at it: this job goes without
    }
    stop_ = false;
    try {
      workers_.reserve(size_);
      for (int i = 1; i < size_; i++) {
        workers_.emplace_back([this] { worker(); });
      }
    } catch (const std::exception&) {
      size_ = static_cast<int>(workers_.size()) + 1; // the system has no more threads or memory to give
    }
    started_ = true;
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
    started_ = false;
  }

  void worker() {
    DefaultFloatEnvironment environment;
    inside_ = true;
    while (!stop_) {
      uint64_t seen = epoch_.load();
      if (!help()) {
        wait_for_work(seen);
      }
    }
  }

  // Works on every job that is shown; false when there was nothing to do. Where there are several jobs, each gets one
  // task a round.
  bool help() {
    bool helped = false;
    for (auto& place : places_) {
      if (!place.job.load(std::memory_order_relaxed)) {
        continue;
      }
      place.helpers.fetch_add(1);
      if (Job* job = place.job.load()) {
        while (job->step()) {
          helped = true;
          if (stop_.load(std::memory_order_relaxed) || jobs_.load(std::memory_order_relaxed) > 1) {
            break;
          }
        }
      }
      place.leave();
    }
    return helped;
  }

  // Returns when there is a job that is newer than `seen`, or when the pool stops.
  void wait_for_work(uint64_t seen) {
    for (Spin spin; spin.again();) {
      if (stop_ || epoch_.load() != seen) {
        return;
      }
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return stop_ || epoch_.load() != seen; });
    sleepers_.fetch_sub(1);
  }

  static constexpr int kPlaces = 16; // streams that work at once; one more works alone
  std::array<Place, kPlaces> places_;
  std::atomic<int> jobs_{0};
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> size_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> started_{false};
  std::mutex workers_mutex_; // workers_, and the changes of size_ and started_
  std::vector<std::thread> workers_;
  std::atomic<int> sleepers_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  static thread_local bool inside_; // a task that calls pool_run again runs inline
};

thread_local bool Pool::inside_ = false;

#if defined(__unix__) || defined(__APPLE__)
// MLX's own matmuls go through BLAS: it gets the same number of threads, or (0) back what it had at first.
void set_blas_threads(int n) {
  static const auto get = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "openblas_get_num_threads"));
  static const auto set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"));
  static const int at_first = get ? get() : 0;
  if (int wanted = n > 0 ? n : at_first; set && wanted > 0) {
    set(wanted);
  }
}
#else
void set_blas_threads(int) {}
#endif

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
  set_blas_threads(n);
}

void set_available_threads(int (*count)()) {
  available_threads = count;
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
