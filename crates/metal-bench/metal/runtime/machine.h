// The machine that kernels run on: what the Metal standard library of ours asks of it, and what compiled kernels
// register with it.

#pragma once

#include <stddef.h>
#include <stdint.h>

namespace bench {

constexpr uint32_t kSimdSize = 32;
constexpr size_t kSlotBytes = 16;

// ---- meetings of lanes

struct Where {
  const char* file;
  int line;
};

struct Slot {
  alignas(kSlotBytes) unsigned char bytes[kSlotBytes];
};

enum class Scope { kSimdgroup, kThreadgroup };
enum class Order { kHalves, kNeighbours, kOneByOne };

// Waits for the other lanes of the simdgroup and returns what each brought.
const Slot* exchange(const char* what, const Slot& mine, Where where);
uint32_t lane_index();
uint32_t present_lanes();
Order reduction_order();

// `flags` as metal::mem_flags.
void barrier(Scope scope, unsigned flags, Where where);

// Ends the launch. `kind` is one word for programs, the rest a sentence for people.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fault(const char* kind, const char* format, ...);

// ---- threadgroup memory: one array for each declaration, the same for all threads of a threadgroup

void* shared_memory(const void* declaration, size_t bytes);

template <typename T, typename Declaration>
T& shared(Declaration) {
  static const char declaration = 0;
  return *static_cast<T*>(shared_memory(&declaration, sizeof(T)));
}

// ---- kernels

// Where the argument of a kernel comes from.
enum class Source : int {
  kBuffer,
  kThreadgroupMemory,
  kThreadPositionInGrid,
  kThreadPositionInThreadgroup,
  kThreadIndexInThreadgroup,
  kThreadIndexInSimdgroup,
  kSimdgroupIndexInThreadgroup,
  kThreadIndexInQuadgroup,
  kQuadgroupIndexInThreadgroup,
  kThreadgroupPositionInGrid,
  kThreadsPerThreadgroup,
  kThreadgroupsPerGrid,
  kThreadsPerGrid,
  kThreadsPerSimdgroup,
  kSimdgroupsPerThreadgroup,
};

struct Argument {
  Source source;
  int index;
};

struct Three {
  uint32_t x, y, z;
};

void* buffer(int index);
void* threadgroup_memory(int index);
Three position(Source source);

struct Kernel {
  const char* name;
  void (*run)();
  Kernel* next;

  Kernel(const char* name, void (*run)());
};

struct Constant {
  int index;
  const char* name;
  void* value;
  size_t bytes;
  Constant* next;

  Constant(int index, const char* name, void* value, size_t bytes);
};

} // namespace bench
