// State of the running launch, shared by the files of the machine.

#pragma once

#include <string>
#include <vector>

#include "machine.h"

namespace bench {

// Metal's limits on what the API takes.
constexpr int kMaxBuffers = 31;
constexpr int kMaxThreadgroupBuffers = 4;
constexpr uint32_t kMaxThreads = 1024;
constexpr size_t kMaxThreadgroupBytes = 32 << 10;

enum class Access : uint32_t { kRead, kReadWrite, kWrite };

struct Buffer {
  int index;
  Access access;
  std::vector<unsigned char> bytes;
};

struct Launch {
  std::string kernel;
  bool grid_in_threads = false;
  Three grid{}, group{};
  Order order = Order::kHalves;
  // Threads may write the same bytes without order, as long as the values are equal.
  bool allow_equal_writes = false;
  bool flush_denormals = false;
  std::vector<Buffer> buffers;
  std::vector<std::pair<int, std::vector<unsigned char>>> constants;
  std::vector<size_t> threadgroup_lengths;
};

struct Fault {
  std::string kind;
  std::string message;
  // Return address into the kernel, or 0.
  uintptr_t pc = 0;
};

struct Statistics {
  uint64_t accesses = 0, meetings = 0, barriers = 0, equal_writes = 0;
};

extern Statistics statistics;

// The thread that is running.
struct Thread {
  // In the threadgroup, and unique in the launch; 0 is nobody.
  uint32_t index = 0, id = 0;
  uint32_t simdgroup = 0;
  // How many barriers it has passed, by the memory that they ordered: device, threadgroup.
  uint32_t threadgroup_epoch[2] = {}, simdgroup_epoch[2] = {};
  uintptr_t stack_begin = 0, stack_end = 0;
};

// nullptr while no kernel runs.
extern const Thread* running;
extern uint32_t threads_in_threadgroup;

// ---- memory.cpp

void bind(const Launch& launch);
void begin_threadgroup();
// Takes back what is in the buffers that the kernel may write, and how many bytes it left unwritten in each.
void collect(Launch& launch, std::vector<std::vector<uint32_t>>& unwritten);
// Checks the last write if that was left for later.
void settle();
void all_stacks(uintptr_t begin, uintptr_t end);

// ---- machine.cpp

const char* describe(const Thread& thread, char* text, size_t size);
[[noreturn]] void fault_at(uintptr_t pc, const char* kind, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
const Kernel* find_kernel(const std::string& name);
// Runs all threadgroups; true if it ended well, else `fault` says why not.
bool run(const Kernel& kernel, const Launch& launch, Fault& fault);

} // namespace bench
