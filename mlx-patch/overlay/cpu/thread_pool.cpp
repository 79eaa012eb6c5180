#include "cpu/thread_pool.h"

#include "cpu/float_environment.h"
#include "cpu/place.h"
#include "cpu/profile.h"
#include "cpu/qmm.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
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

// How long a thread spins before it sleeps: longer than the gap between two launches of a step.
constexpr auto kSpin = std::chrono::microseconds(200);
// After this it lets others run now and then.
constexpr auto kSpinAlone = std::chrono::microseconds(20);

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
    if (++rounds_ % 32 != 0) {
      return true;
    }
    auto now = std::chrono::steady_clock::now();
    if (rounds_ == 32) {
      start_ = now;
    }
    if (now - start_ > kSpinAlone) {
      std::this_thread::yield();
    }
    return now - start_ < kSpin;
  }

 private:
  int rounds_{0};
  std::chrono::steady_clock::time_point start_;
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
    set_size(n);
  }

  int size() const {
    return size_;
  }
  int width() const {
    return at_once_;
  }

  void run(int64_t tasks, int64_t work, TaskFn fn, void* context) {
    int place = -1;
    if (tasks > 1 && work >= kInlineWork && at_once_ > 1 && !inside_) {
      if (!started_) {
        start_workers();
      }
      place = take_place();
    }
    if (place < 0) {
      ProfileSpan span(Span::Inline, tasks);
      for (int64_t task = 0; task < tasks; task++) {
        fn(context, task);
      }
      return;
    }
    inside_ = true;
    auto error = run_at(place, tasks, fn, context);
    places_[place].taken.store(false, std::memory_order_release);
    inside_ = false;
    if (error) {
      std::rethrow_exception(error);
    }
  }

 private:
  explicit Pool(int n) {
    set_size(n);
  }

  static std::atomic<Pool*>& first() {
    static std::atomic<Pool*> pool{new Pool(0)};
#if defined(__unix__) || defined(__APPLE__)
    // A forked child has no workers, and locks may be held by threads that it has not got: it starts afresh.
    pthread_atfork(nullptr, nullptr, [] {
      inside_ = false;
      pool = new Pool(pool.load()->size());
    });
#endif
    return pool;
  }

  void set_size(int n) {
    int available = default_size();
    size_ = std::min(n > 0 ? n : available, kMaxThreads);
    at_once_ = std::min<int>(size_, available);
  }

  std::exception_ptr run_at(int index, int64_t tasks, TaskFn fn, void* context) {
    Place& place = places_[index];
    ProfileSpan span(Span::Launch, tasks);
    place.fill(tasks, at_once_, fn, context, span.name());
    uint64_t before = state_.fetch_add(kEpoch | uint64_t{1} << index);
    if (sleepers_.load() > 0) {
      // The woken wake the others, unless those between are with another job.
      before & kOpen ? wake(1, place.parts()) : wake_next(0, place.parts());
    }
    place.work(0, [] { return true; });
    state_.fetch_sub(uint64_t{1} << index);
    for (int thread = 1, n = present_; thread <= n; thread++) {
      wait_until_away(place.share(thread).presence);
    }
    return place.take_error();
  }

  void wait_until_away(std::atomic<uint32_t>& presence) {
    for (Spin spin; presence.load() != kAway;) {
      if (!spin.again()) {
        // It may have lost its processor: leave it ours.
        uint32_t here = kHere;
        if (presence.compare_exchange_strong(here, kAwaited) || here == kAwaited) {
          presence.wait(kAwaited);
        }
      }
    }
  }

  // One of the places that callers share; none (-1) when too many streams work at once.
  int take_place() {
    for (int i = 0; i < kPlaces; i++) {
      auto& taken = places_[i].taken;
      if (!taken.load(std::memory_order_relaxed) && !taken.exchange(true, std::memory_order_acquire)) {
        return i;
      }
    }
    return -1;
  }

  void start_workers() {
    std::unique_lock<std::mutex> lock(workers_mutex_, std::try_to_lock);
    if (!lock || started_) {
      return; // someone else is at it: this job goes without
    }
    stop_ = false;
    try {
      workers_.reserve(at_once_);
      if (!beds_) {
        beds_ = std::make_unique<Bed[]>(kMaxThreads);
      }
      for (int i = 1; i < at_once_; i++) {
        present_ = std::max<int>(present_, i); // before it can be at a place
        workers_.emplace_back([this, i] { worker(i); });
      }
    } catch (const std::exception&) {
      size_ = static_cast<int>(workers_.size()) + 1; // the system has no more threads or memory to give
      at_once_ = size_.load();
    }
    started_ = true;
  }

  void stop_workers() {
    stop_ = true;
    wake(1, static_cast<int>(workers_.size()) + 1);
    for (auto& t : workers_) {
      t.join();
    }
    workers_.clear();
    started_ = false;
  }

  void worker(int thread) {
    DefaultFloatEnvironment environment;
    inside_ = true;
    while (!stop_) {
      uint64_t seen = state_.load();
      if (!help(thread, seen & kOpen)) {
        wait_for_work(thread, seen);
      }
    }
  }

  // Works at every open place: one task at each where there are several, otherwise for as long as there is something to
  // do. True if it left before the end.
  bool help(int thread, uint64_t open) {
    bool left = false;
    for (; open; open &= open - 1) {
      int index = std::countr_zero(open);
      Place& place = places_[index];
      auto& presence = place.share(thread).presence;
      presence.store(kHere);
      if (state_.load() >> index & 1) {
        if (sleepers_.load(std::memory_order_relaxed) > 0) {
          wake_next(thread, place.parts());
        }
        place.work(thread, [&] {
          uint64_t others = state_.load(std::memory_order_relaxed) & kOpen & ~(uint64_t{1} << index);
          left |= others || stop_.load(std::memory_order_relaxed);
          return !left;
        });
      }
      if (presence.exchange(kAway) == kAwaited) {
        presence.notify_one();
      }
    }
    return left;
  }

  // Returns when there is a job that is newer than `seen`, or when the pool stops.
  void wait_for_work(int thread, uint64_t seen) {
    auto nothing = [&] { return !stop_ && (state_.load() ^ seen) < kEpoch; };
    for (Spin spin; spin.again();) {
      if (!nothing()) {
        return;
      }
    }
    auto& asleep = beds_[thread].asleep;
    sleepers_.fetch_add(1);
    asleep.store(1);
    while (nothing() && asleep.load() == 1) {
      asleep.wait(1);
    }
    asleep.store(0);
    sleepers_.fetch_sub(1);
  }

  // Wakes those of first .. end - 1 that sleep.
  void wake(int first, int end) {
    for (int thread = first; thread < end; thread++) {
      auto& asleep = beds_[thread].asleep;
      if (asleep.load() == 1 && asleep.exchange(0) == 1) {
        asleep.notify_one();
      }
    }
  }

  // The two that `thread` wakes, of threads that form a heap: a wake-up takes its caller some microseconds.
  void wake_next(int thread, int threads) {
    wake(2 * thread + 1, std::min({2 * thread + 3, threads, present_.load() + 1}));
  }

  struct alignas(64) Bed {
    std::atomic<uint32_t> asleep{0};
  };

  static constexpr int kPlaces = 16; // streams that work at once; one more works alone
  static constexpr uint64_t kEpoch = 1 << kPlaces;
  static constexpr uint64_t kOpen = kEpoch - 1;
  std::array<Place, kPlaces> places_;
  // How many jobs there have been, above a bit for each place that is open. All workers watch it.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<int> size_{1};
  std::atomic<int> at_once_{1}; // of these, as many as there are processors: more would only take turns
  std::atomic<int> present_{0}; // the highest number that a worker ever had
  std::atomic<bool> stop_{false};
  std::atomic<bool> started_{false};
  std::mutex workers_mutex_; // workers_, and the changes of size_, at_once_ and started_
  std::vector<std::thread> workers_;
  std::unique_ptr<Bed[]> beds_;
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

int pool_width() {
  return Pool::instance().width();
}

void pool_run(int64_t tasks, int64_t work, TaskFn fn, void* context) {
  Pool::instance().run(tasks, work, fn, context);
}

void* thread_scratch(Scratch slot, int64_t bytes) {
  static thread_local Buffer buffers[4];
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
