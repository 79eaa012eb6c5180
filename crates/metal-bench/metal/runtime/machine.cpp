// Threads, simdgroups and threadgroups. Each thread of a threadgroup is a fiber with a stack of its own; one runs at a
// time, until it meets the other lanes of its simdgroup, stands at a barrier or ends. Lanes that meet at different
// places, or after different numbers of meetings, have diverged, and that ends the launch: so does a barrier that a
// thread never reaches.

#include "machine.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "launch.h"

namespace bench {

uint32_t threads_in_threadgroup = 0;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kSecondsPerLaunch = 60;

enum class Doing { kRuns, kMeets, kWaits, kEnded };

struct Fiber {
  Thread thread;
  Doing doing = Doing::kEnded;
  // Where it meets or waits, at what, and the how manieth meeting of this thread that is.
  const char* what = nullptr;
  Where where{};
  Scope scope{};
  unsigned flags = 0;
  uint64_t meetings = 0;
  bool started = false;
  ucontext_t context;
  jmp_buf resume;
};

Fiber fibers[kMaxThreads];
unsigned char* stacks = nullptr;
jmp_buf scheduler;
// Two sets: a lane may write its next contribution before the others have read the last.
Slot slots[2][kMaxThreads];

const Kernel* kernel = nullptr;
const Launch* launch = nullptr;
Three threadgroup_position, threadgroup_size, threadgroups;
uint32_t threadgroup_number = 0;

jmp_buf on_fault;
Fault* fault_seen = nullptr;

Kernel* all_kernels = nullptr;
Constant* all_constants = nullptr;

Fiber& current() {
  return fibers[running->index];
}

// ---- switching

void fiber_main() {
  for (;;) {
    kernel->run();
    settle();
    Fiber& self = current();
    self.doing = Doing::kEnded;
    if (_setjmp(self.resume) == 0) {
      _longjmp(scheduler, 1);
    }
  }
}

void resume(Fiber& fiber) {
  running = &fiber.thread;
  fiber.doing = Doing::kRuns;
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) {
      _longjmp(fiber.resume, 1);
    }
    fiber.started = true;
    setcontext(&fiber.context);
  }
  running = nullptr;
}

// Gives the processor back until what the fiber does has come about.
void pause(Fiber& self) {
  settle();
  if (_setjmp(self.resume) == 0) {
    _longjmp(scheduler, 1);
  }
}

void make_fiber(uint32_t i) {
  Fiber& fiber = fibers[i];
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stacks + i * kStackBytes;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  fiber.started = false;
  fiber.thread.stack_begin = uintptr_t(stacks + i * kStackBytes);
  fiber.thread.stack_end = fiber.thread.stack_begin + kStackBytes;
}

// ---- faults

void place(const Fiber& f, char* text, size_t size) {
  if (f.doing == Doing::kEnded) {
    snprintf(text, size, "has ended");
  } else {
    const char* file = strrchr(f.where.file, '/');
    snprintf(text, size, "is at %s, %s:%d", f.what, file ? file + 1 : f.where.file, f.where.line);
  }
}

[[noreturn]] void diverged(const Fiber& a, const Fiber& b) {
  char here[256], there[256];
  place(a, here, sizeof here);
  place(b, there, sizeof there);
  running = &a.thread;
  fault(
      "divergence", "it %s after %llu meetings, while lane %u of simdgroup %u %s after %llu", here,
      static_cast<unsigned long long>(a.meetings), b.thread.index % kSimdSize, b.thread.simdgroup, there,
      static_cast<unsigned long long>(b.meetings));
}

void on_signal(int number, siginfo_t*, void*) {
  if (!running) {
    _exit(128 + number);
  }
  switch (number) {
    case SIGALRM:
      fault("endless", "the kernel did not end within %d seconds", kSecondsPerLaunch);
    case SIGILL:
    case SIGTRAP:
      fault("undefined", "undefined behaviour: an index outside of an array, an overflow or a shift by too much");
    case SIGFPE:
      fault("undefined", "an integer division by zero");
    default:
      fault("crash", "an access that the bench did not see, of memory that is not there");
  }
}

void catch_signals() {
  static unsigned char stack[64 << 10];
  stack_t alternate{};
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof stack;
  sigaltstack(&alternate, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGALRM}) {
    sigaction(number, &action, nullptr);
  }
}

// ---- scheduling

bool same_meeting(const Fiber& a, const Fiber& b) {
  return a.doing == b.doing && a.scope == b.scope && a.meetings == b.meetings && a.where.line == b.where.line &&
      strcmp(a.what, b.what) == 0 && strcmp(a.where.file, b.where.file) == 0;
}

// Runs the simdgroup until its lanes have ended or wait for the threadgroup.
void run_simdgroup(uint32_t first, uint32_t lanes) {
  for (;;) {
    for (uint32_t i = first; i < first + lanes; i++) {
      if (fibers[i].doing == Doing::kRuns) {
        resume(fibers[i]);
      }
    }
    Fiber& leader = fibers[first];
    bool meets = false;
    for (uint32_t i = first; i < first + lanes; i++) {
      meets |= fibers[i].doing == Doing::kMeets;
    }
    if (!meets) {
      return;
    }
    for (uint32_t i = first + 1; i < first + lanes; i++) {
      if (!same_meeting(leader, fibers[i])) {
        diverged(fibers[i], leader);
      }
    }
    for (uint32_t i = first; i < first + lanes; i++) {
      Fiber& f = fibers[i];
      for (int space = 0; space < 2; space++) {
        f.thread.simdgroup_epoch[space] += (f.flags >> space) & 1;
      }
      f.doing = Doing::kRuns;
    }
  }
}

void run_threadgroup() {
  begin_threadgroup();
  uint32_t count = threads_in_threadgroup;
  for (uint32_t i = 0; i < count; i++) {
    Fiber& f = fibers[i];
    Thread& t = f.thread;
    t.index = i;
    t.id = threadgroup_number * kMaxThreads + i + 1;
    t.simdgroup = i / kSimdSize;
    for (int space = 0; space < 2; space++) {
      t.threadgroup_epoch[space] = t.simdgroup_epoch[space] = 1;
    }
    f.meetings = 0;
    f.doing = Doing::kRuns;
  }
  for (;;) {
    for (uint32_t first = 0; first < count; first += kSimdSize) {
      run_simdgroup(first, count - first < kSimdSize ? count - first : kSimdSize);
    }
    bool waits = false;
    for (uint32_t i = 0; i < count; i++) {
      waits |= fibers[i].doing == Doing::kWaits;
    }
    if (!waits) {
      return;
    }
    // Barriers are counted for each thread alike, meetings within simdgroups are not.
    for (uint32_t i = 1; i < count; i++) {
      const Fiber &a = fibers[0], &b = fibers[i];
      if (a.doing != b.doing || a.where.line != b.where.line || strcmp(a.where.file, b.where.file) != 0) {
        diverged(b, a);
      }
    }
    for (uint32_t i = 0; i < count; i++) {
      Fiber& f = fibers[i];
      for (int space = 0; space < 2; space++) {
        f.thread.threadgroup_epoch[space] += (f.flags >> space) & 1;
      }
      f.doing = Doing::kRuns;
    }
    statistics.barriers++;
  }
}

void flush_denormals(bool flush) {
#if defined(__x86_64__)
  unsigned both = 0x8040;
  _mm_setcsr(flush ? _mm_getcsr() | both : _mm_getcsr() & ~both);
#elif defined(__aarch64__)
  uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  control = flush ? control | (1u << 24) : control & ~uint64_t(1u << 24);
  __asm__ volatile("msr fpcr, %0" : : "r"(control));
#else
  if (flush) {
    fault("machine", "this processor's mode for denormals is not known to the bench");
  }
#endif
}

void set_constants() {
  for (auto& [index, bytes] : launch->constants) {
    bool found = false;
    for (Constant* c = all_constants; c; c = c->next) {
      if (c->index == index && c->bytes == bytes.size()) {
        memcpy(c->value, bytes.data(), bytes.size());
        found = true;
      }
    }
    if (!found) {
      fault("machine", "there is no function constant %d of %zu bytes", index, bytes.size());
    }
  }
}

uint32_t smaller(uint32_t a, uint32_t b) {
  return a < b ? a : b;
}

void run_grid() {
  Three grid = launch->grid, group = launch->group;
  uint64_t size = uint64_t(group.x) * group.y * group.z;
  if (size == 0 || size > kMaxThreads || uint64_t(grid.x) * grid.y * grid.z == 0) {
    fault("machine", "a threadgroup of %llu threads", static_cast<unsigned long long>(size));
  }
  threadgroups = grid;
  if (launch->grid_in_threads) {
    threadgroups = {(grid.x + group.x - 1) / group.x, (grid.y + group.y - 1) / group.y, (grid.z + group.z - 1) / group.z};
  }
  if (uint64_t(threadgroups.x) * threadgroups.y * threadgroups.z >= UINT32_MAX / kMaxThreads) {
    fault("machine", "too many threadgroups");
  }
  threadgroup_number = 0;
  for (uint32_t z = 0; z < threadgroups.z; z++) {
    for (uint32_t y = 0; y < threadgroups.y; y++) {
      for (uint32_t x = 0; x < threadgroups.x; x++, threadgroup_number++) {
        threadgroup_position = {x, y, z};
        threadgroup_size = group;
        if (launch->grid_in_threads) {
          threadgroup_size = {
              smaller(group.x, grid.x - x * group.x),
              smaller(group.y, grid.y - y * group.y),
              smaller(group.z, grid.z - z * group.z)};
        }
        threads_in_threadgroup = threadgroup_size.x * threadgroup_size.y * threadgroup_size.z;
        run_threadgroup();
      }
    }
  }
}

} // namespace

Kernel::Kernel(const char* name, void (*run)()) : name(name), run(run), next(all_kernels) {
  all_kernels = this;
}

Constant::Constant(int index, const char* name, void* value, size_t bytes)
    : index(index), name(name), value(value), bytes(bytes), next(all_constants) {
  all_constants = this;
}

const Kernel* find_kernel(const std::string& name) {
  for (const Kernel* k = all_kernels; k; k = k->next) {
    if (name == k->name) {
      return k;
    }
  }
  return nullptr;
}

bool run(const Kernel& which, const Launch& how, Fault& fault) {
  if (!stacks) {
    size_t bytes = kStackBytes * kMaxThreads;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      fault = {"machine", "no memory for stacks"};
      return false;
    }
    stacks = static_cast<unsigned char*>(p);
    all_stacks(uintptr_t(stacks), uintptr_t(stacks) + bytes);
    catch_signals();
    for (uint32_t i = 0; i < kMaxThreads; i++) {
      make_fiber(i);
    }
  }
  kernel = &which;
  launch = &how;
  fault_seen = &fault;
  statistics = {};
  running = nullptr;
  alarm(kSecondsPerLaunch);
  bool well = _setjmp(on_fault) == 0;
  if (well) {
    bind(how);
    set_constants();
    flush_denormals(how.flush_denormals);
    run_grid();
  } else {
    // fibers stand in the middle of what they did
    for (uint32_t i = 0; i < kMaxThreads; i++) {
      if (fibers[i].started) {
        make_fiber(i);
      }
    }
  }
  flush_denormals(false);
  alarm(0);
  running = nullptr;
  return well;
}

// ---- what kernels ask

const Slot* exchange(const char* what, const Slot& mine, Where where) {
  Fiber& self = current();
  Slot* set = slots[self.meetings % 2];
  set[self.thread.index] = mine;
  self.meetings++;
  self.what = what;
  self.where = where;
  self.scope = Scope::kSimdgroup;
  self.flags = 0;
  self.doing = Doing::kMeets;
  statistics.meetings++;
  pause(self);
  return set + self.thread.simdgroup * kSimdSize;
}

uint32_t lane_index() {
  return running->index % kSimdSize;
}

uint32_t present_lanes() {
  uint32_t lanes = threads_in_threadgroup - running->simdgroup * kSimdSize;
  return lanes >= kSimdSize ? 0xffffffffu : (1u << lanes) - 1;
}

Order reduction_order() {
  return launch->order;
}

void barrier(Scope scope, unsigned flags, Where where) {
  Fiber& self = current();
  self.what = scope == Scope::kSimdgroup ? "simdgroup_barrier" : "threadgroup_barrier";
  self.where = where;
  self.scope = scope;
  self.flags = flags;
  self.meetings++;
  self.doing = scope == Scope::kSimdgroup ? Doing::kMeets : Doing::kWaits;
  pause(self);
}

Three position(Source source) {
  uint32_t i = running->index;
  const Three& size = threadgroup_size;
  Three within = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
  const Three& group = launch->group;
  const Three& at = threadgroup_position;
  switch (source) {
    case Source::kThreadPositionInGrid:
      return {at.x * group.x + within.x, at.y * group.y + within.y, at.z * group.z + within.z};
    case Source::kThreadPositionInThreadgroup:
      return within;
    case Source::kThreadIndexInThreadgroup:
      return {i, 0, 0};
    case Source::kThreadIndexInSimdgroup:
      return {i % kSimdSize, 0, 0};
    case Source::kSimdgroupIndexInThreadgroup:
      return {i / kSimdSize, 0, 0};
    case Source::kThreadIndexInQuadgroup:
      return {i % 4, 0, 0};
    case Source::kQuadgroupIndexInThreadgroup:
      return {i / 4, 0, 0};
    case Source::kThreadgroupPositionInGrid:
      return at;
    case Source::kThreadsPerThreadgroup:
      return size;
    case Source::kThreadgroupsPerGrid:
      return threadgroups;
    case Source::kThreadsPerGrid:
      return launch->grid_in_threads
          ? launch->grid
          : Three{threadgroups.x * group.x, threadgroups.y * group.y, threadgroups.z * group.z};
    case Source::kThreadsPerSimdgroup:
      return {kSimdSize, 0, 0};
    case Source::kSimdgroupsPerThreadgroup:
      return {(threads_in_threadgroup + kSimdSize - 1) / kSimdSize, 0, 0};
    case Source::kBuffer:
    case Source::kThreadgroupMemory:
      break;
  }
  return {};
}

static void stop(uintptr_t pc, const char* kind, const char* format, va_list arguments) {
  char said[512], where[160] = "";
  vsnprintf(said, sizeof said, format, arguments);
  if (running) {
    snprintf(
        where, sizeof where, "threadgroup (%u, %u, %u), simdgroup %u, lane %u: ", threadgroup_position.x,
        threadgroup_position.y, threadgroup_position.z, running->simdgroup, running->index % kSimdSize);
  }
  *fault_seen = {kind, std::string(where) + said, pc};
  running = nullptr;
  _longjmp(on_fault, 1);
}

void fault(const char* kind, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  stop(0, kind, format, arguments);
  __builtin_unreachable();
}

void fault_at(uintptr_t pc, const char* kind, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  stop(pc, kind, format, arguments);
  __builtin_unreachable();
}

} // namespace bench
