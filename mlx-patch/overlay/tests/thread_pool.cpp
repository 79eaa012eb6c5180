// The thread pool by itself: `thread_pool CASE` exits 0, or says what is wrong. mlx-patch/tests/cpu.rs builds and runs it.

#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/thread_pool.h"

using namespace zmlx::cpu;
using namespace std::chrono_literals;

namespace {

constexpr int64_t kMuch = 1 << 30; // work that is worth waking threads for
int blas_threads = 5;

#define CHECK(condition)                                               \
  if (!(condition)) {                                                  \
    std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition);       \
    std::exit(1);                                                      \
  }

// Who ran the tasks of one parallel_for.
struct Crew {
  std::mutex mutex;
  std::set<std::thread::id> members;
  std::atomic<int64_t> done{0};

  void work(int64_t tasks, std::chrono::milliseconds each) {
    parallel_for(tasks, kMuch, [&](int64_t) {
      std::this_thread::sleep_for(each);
      done++;
      std::lock_guard<std::mutex> lock(mutex);
      members.insert(std::this_thread::get_id());
    });
  }
};

double cpu_seconds_of_this_thread() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

void every_task_runs_once() {
  for (int threads : {1, 2, 5}) {
    pool_resize(threads);
    CHECK(pool_size() == threads);
    for (int round = 0; round < 2000; round++) {
      std::atomic<int> counts[37] = {};
      parallel_for(37, kMuch, [&](int64_t task) { counts[task]++; });
      for (auto& c : counts) {
        CHECK(c == 1);
      }
    }
  }
}

void first_exception_comes_back() {
  pool_resize(3);
  for (int round = 0; round < 100; round++) {
    bool caught = false;
    try {
      parallel_for(50, kMuch, [](int64_t task) {
        if (task == 20) {
          throw std::runtime_error("twenty");
        }
      });
    } catch (const std::runtime_error& e) {
      caught = !std::strcmp(e.what(), "twenty");
    }
    CHECK(caught);
  }
}

void streams_share_the_workers() {
  pool_resize(3);
  Crew crews[4];
  std::vector<std::thread> streams;
  for (auto& crew : crews) {
    streams.emplace_back([&] { crew.work(60, 3ms); });
  }
  for (auto& s : streams) {
    s.join();
  }
  for (auto& crew : crews) {
    CHECK(crew.done == 60);
    CHECK(crew.members.size() == 3); // the stream itself and both workers
  }
}

void more_streams_than_places_all_finish() {
  pool_resize(2);
  Crew crews[40];
  std::vector<std::thread> streams;
  for (auto& crew : crews) {
    streams.emplace_back([&] { crew.work(5, 2ms); });
  }
  for (auto& s : streams) {
    s.join();
  }
  for (auto& crew : crews) {
    CHECK(crew.done == 5);
  }
}

// A worker that lost its processor in the middle of a task: the caller must not burn its own.
void waiting_for_a_stopped_worker_takes_no_processor() {
  pool_resize(2);
  auto caller = std::this_thread::get_id();
  std::atomic<bool> worker_came{false};
  double before = cpu_seconds_of_this_thread();
  parallel_for(2, kMuch, [&](int64_t) {
    if (std::this_thread::get_id() == caller) {
      while (!worker_came) {
        std::this_thread::sleep_for(1ms);
      }
    } else {
      worker_came = true;
      std::this_thread::sleep_for(500ms);
    }
  });
  CHECK(cpu_seconds_of_this_thread() - before < 0.1);
}

void idle_workers_sleep() {
  pool_resize(4);
  Crew crew;
  crew.work(8, 1ms);
  std::this_thread::sleep_for(50ms);
  auto before = std::clock();
  std::this_thread::sleep_for(300ms);
  CHECK(std::clock() - before < CLOCKS_PER_SEC / 20);
}

void work_goes_on_without_threads_that_cannot_start() {
  pool_resize(6);
  long pages = 0;
  auto statm = std::fopen("/proc/self/statm", "r");
  CHECK(statm && std::fscanf(statm, "%ld", &pages) == 1);
  std::fclose(statm);
  // Room for two stacks.
  rlimit stack, limit;
  getrlimit(RLIMIT_STACK, &stack);
  CHECK(stack.rlim_cur != RLIM_INFINITY && stack.rlim_cur >= 1 << 20);
  getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = pages * sysconf(_SC_PAGESIZE) + stack.rlim_cur * 5 / 2;
  CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
  Crew crew;
  crew.work(40, 1ms);
  CHECK(crew.done == 40);
  CHECK(pool_size() >= 1 && pool_size() < 6);
}

void resize_while_streams_work() {
  pool_resize(4);
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    for (int i = 0; !stop; i++) {
      pool_resize(1 + i % 4);
      std::this_thread::sleep_for(1ms);
    }
  });
  for (int round = 0; round < 200; round++) {
    Crew crew;
    crew.work(6, 0ms);
    CHECK(crew.done == 6);
  }
  stop = true;
  changer.join();
}

void forked_child_works() {
  pool_resize(3);
  Crew parent;
  std::thread busy([&] { parent.work(100, 5ms); });
  std::this_thread::sleep_for(100ms);
  for (int child = 0; child < 5; child++) {
    pid_t pid = fork();
    if (pid == 0) {
      alarm(20);
      Crew crew;
      crew.work(30, 1ms);
      CHECK(crew.done == 30 && crew.members.size() == 3);
      pool_resize(2);
      crew.work(30, 1ms);
      CHECK(crew.done == 60);
      _exit(0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  }
  busy.join();
  CHECK(parent.done == 100);
}

void zero_restores_the_defaults() {
  set_available_threads([] { return 7; });
  pool_resize(3);
  CHECK(pool_size() == 3 && blas_threads == 3);
  pool_resize(2);
  CHECK(pool_size() == 2 && blas_threads == 2);
  pool_resize(0);
  CHECK(pool_size() == 7 && blas_threads == 5);
}

// Processor seconds that `launches` of 32 tasks take.
double seconds_of(int launches) {
  auto before = std::clock();
  for (int i = 0; i < launches; i++) {
    std::atomic<int64_t> done{0};
    parallel_for(32, kMuch, [&](int64_t) {
      for (int n = 0; n < 20000; n++) {
        asm volatile("" ::: "memory");
      }
      done++;
    });
    CHECK(done == 32);
  }
  return static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
}

// Sixteen threads on one processor do the work in about its own processor time.
void crowded_threads_waste_little() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  CHECK(sched_setaffinity(0, sizeof(one), &one) == 0);
  set_available_threads([] { return 1; });
  pool_resize(1);
  seconds_of(20);
  double alone = seconds_of(200);
  pool_resize(16);
  double crowded = seconds_of(200);
  std::printf("one thread %.3f s, sixteen %.3f s\n", alone, crowded);
  CHECK(crowded < 1.5 * alone);
}

// Launches of every size in quick succession, from threads that come and go, while workers fall asleep and wake.
void launches_of_all_sizes_and_pauses() {
  pool_resize(9);
  std::vector<std::thread> streams;
  for (int stream = 0; stream < 5; stream++) {
    streams.emplace_back([stream] {
      for (int round = 0; round < 3000; round++) {
        int64_t tasks = 2 + (round * 7 + stream) % 40;
        std::atomic<int64_t> sum{0};
        parallel_for(tasks, kMuch, [&](int64_t task) { sum += task + 1; });
        CHECK(sum == tasks * (tasks + 1) / 2);
        if (round % 500 == stream) {
          std::this_thread::sleep_for(2ms);
        }
      }
    });
  }
  for (auto& s : streams) {
    s.join();
  }
}

#if defined(__x86_64__)
void workers_keep_denormals() {
  __builtin_ia32_ldmxcsr(0x1f80 | 0x8040);
  pool_resize(4); // threads inherit their creator's control word
  std::atomic<int> flushing{0};
  auto caller = std::this_thread::get_id();
  parallel_for(40, kMuch, [&](int64_t) {
    std::this_thread::sleep_for(1ms);
    if (std::this_thread::get_id() != caller) {
      flushing += (__builtin_ia32_stmxcsr() & 0x8040) != 0;
    }
  });
  CHECK(flushing == 0);
  CHECK((__builtin_ia32_stmxcsr() & 0x8040) == 0x8040); // the caller's own is its business
}
#else
void workers_keep_denormals() {}
#endif

struct Case {
  const char* name;
  void (*run)();
};

#define CASE(name) {#name, name}
constexpr Case kCases[] = {
    CASE(every_task_runs_once),
    CASE(first_exception_comes_back),
    CASE(streams_share_the_workers),
    CASE(more_streams_than_places_all_finish),
    CASE(waiting_for_a_stopped_worker_takes_no_processor),
    CASE(idle_workers_sleep),
    CASE(work_goes_on_without_threads_that_cannot_start),
    CASE(resize_while_streams_work),
    CASE(forked_child_works),
    CASE(zero_restores_the_defaults),
    CASE(crowded_threads_waste_little),
    CASE(launches_of_all_sizes_and_pauses),
    CASE(workers_keep_denormals),
};

} // namespace

// A BLAS for the pool to find.
extern "C" int openblas_get_num_threads() {
  return blas_threads;
}
extern "C" void openblas_set_num_threads(int n) {
  blas_threads = n;
}

int main(int argc, char** argv) {
  alarm(60); // a hang is a failure
  set_available_threads([] { return 16; }); // so that threads are started, however many processors there are
  for (auto& c : kCases) {
    if (argc == 1) {
      std::puts(c.name);
    } else if (!std::strcmp(argv[1], c.name)) {
      c.run();
      return 0;
    }
  }
  return argc == 1 ? 0 : 2;
}
