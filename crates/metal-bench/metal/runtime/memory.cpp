// Memory as kernels see it: where each access goes is checked before it happens.
//
// Kernels are compiled with -fsanitize=thread, so that the compiler calls a function before every load and store that
// could meet another thread; the functions are ours. Buffers lie in windows of one reserved range, far apart, so an
// address says which buffer is meant and an index that runs away meets nothing. Each byte that can be written remembers
// who wrote and who read it last, and at which barrier.

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "launch.h"

namespace bench {

Statistics statistics;
const Thread* running = nullptr;

namespace {

constexpr size_t kWindow = size_t(1) << 28;
constexpr size_t kMargin = size_t(1) << 26;
// Threadgroup memory and arrays that hosts give a length for follow the buffers.
constexpr int kShared = kMaxBuffers;
constexpr int kWindows = kMaxBuffers + 1 + kMaxThreadgroupBuffers;
constexpr size_t kSharedCapacity = 2 * kMaxThreadgroupBytes;
// What may be read or written next to an array is 0, so that its end is noticed.
constexpr size_t kGap = 64;

// What is in memory that nobody has written.
constexpr int kGarbage = 0xa5;

enum State : unsigned char { kOutside, kUnwritten, kWritten };

struct Stamp {
  uint32_t id, threadgroup_epoch, simdgroup_epoch;
};

struct Cell {
  Stamp writer, reader, other_reader;
  bool atomic;
};

struct Region {
  unsigned char* begin = nullptr;
  size_t size = 0, committed = 0;
  bool bound = false, writable = false;
  std::vector<State> state;
  std::vector<Cell> cells;
};

unsigned char* arena = nullptr;
Region regions[kWindows];
uintptr_t stacks_begin, stacks_end;

struct Declared {
  const void* declaration;
  size_t offset, bytes;
};
std::vector<Declared> declared;
size_t declared_end = 0, declared_bytes = 0;

// A write that met another, allowed if it changes nothing: judged once it has happened.
struct Pending {
  bool is = false;
  const unsigned char* at;
  std::vector<unsigned char> before;
  uintptr_t pc;
  char text[256];
} pending;

void reserve() {
  if (arena) {
    return;
  }
  void* p = mmap(nullptr, kWindow * kWindows, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    fault("machine", "cannot reserve %zu bytes of addresses", kWindow * kWindows);
  }
  arena = static_cast<unsigned char*>(p);
  for (int i = 0; i < kWindows; i++) {
    regions[i].begin = arena + i * kWindow + kMargin;
  }
}

void resize(Region& region, size_t size) {
  if (size > kWindow - 2 * kMargin) {
    fault("machine", "a buffer of %zu bytes is too large for the bench", size);
  }
  size_t pages = (size + 0xffff) & ~size_t(0xffff);
  if (pages > region.committed) {
    if (mprotect(region.begin, pages, PROT_READ | PROT_WRITE) != 0) {
      fault("machine", "cannot have %zu bytes for a buffer", size);
    }
    region.committed = pages;
  }
  region.size = size;
  region.bound = true;
}

void name_of(int window, char* text, size_t size) {
  if (window < kShared) {
    snprintf(text, size, "buffer %d", window);
  } else if (window == kShared) {
    snprintf(text, size, "threadgroup memory");
  } else {
    snprintf(text, size, "threadgroup buffer %d", window - kShared - 1);
  }
}

// 0 for device memory, 1 for threadgroup memory.
int space_of(int window) {
  return window >= kShared;
}

uint32_t threadgroup_of(uint32_t id) {
  return (id - 1) / kMaxThreads;
}

uint32_t simdgroup_of(uint32_t id) {
  return (id - 1) % kMaxThreads / kSimdSize;
}

// How much it takes to order the thread with the running one.
int distance(uint32_t id) {
  return threadgroup_of(id) != threadgroup_of(running->id) ? 2 : simdgroup_of(id) != running->simdgroup;
}

bool ordered(const Stamp& before, int space) {
  const Thread& now = *running;
  if (before.id == 0 || before.id == now.id) {
    return true;
  }
  if (threadgroup_of(before.id) != threadgroup_of(now.id)) {
    return false;
  }
  return before.threadgroup_epoch < now.threadgroup_epoch[space] ||
      (simdgroup_of(before.id) == now.simdgroup && before.simdgroup_epoch < now.simdgroup_epoch[space]);
}

Stamp stamp(int space) {
  return {running->id, running->threadgroup_epoch[space], running->simdgroup_epoch[space]};
}

const char* other(uint32_t id, char* text, size_t size) {
  bool same = threadgroup_of(id) == threadgroup_of(running->id);
  snprintf(
      text,
      size,
      "lane %u of simdgroup %u%s",
      (id - 1) % kSimdSize,
      simdgroup_of(id),
      same ? " of the same threadgroup" : " of another threadgroup");
  return text;
}

bool allow_equal_writes = false;

[[noreturn]] void race(uintptr_t pc, int window, size_t offset, const char* what, uint32_t with) {
  char name[64], who[96];
  name_of(window, name, sizeof name);
  fault_at(
      pc, "race", "%s at byte %zu of %s, and no barrier between it and %s", what, offset, name,
      other(with, who, sizeof who));
}

void note_read(Cell& cell, int window, size_t offset, bool atomic, uintptr_t pc) {
  int space = space_of(window);
  if (!ordered(cell.writer, space) && !(atomic && cell.atomic)) {
    race(pc, window, offset, "a read", cell.writer.id);
  }
  // Two readers are remembered, the last and the most distant one: whoever writes later meets one of them.
  Stamp& far = cell.other_reader;
  if (!ordered(cell.reader, space) && (ordered(far, space) || distance(cell.reader.id) >= distance(far.id))) {
    far = cell.reader;
  }
  cell.reader = stamp(space);
}

// True if the write meets another that it may equal.
bool note_write(Cell& cell, int window, size_t offset, bool atomic, uintptr_t pc) {
  int space = space_of(window);
  bool excused = atomic && cell.atomic;
  bool meets = false;
  if (!excused) {
    for (const Stamp* reader : {&cell.reader, &cell.other_reader}) {
      if (!ordered(*reader, space)) {
        race(pc, window, offset, "a write over a read", reader->id);
      }
    }
    meets = !ordered(cell.writer, space);
    if (meets && !allow_equal_writes) {
      race(pc, window, offset, "a second write", cell.writer.id);
    }
  }
  cell.writer = stamp(space);
  cell.atomic = atomic;
  return meets;
}

[[noreturn]] void outside(uintptr_t pc, uintptr_t at, size_t bytes, bool write, int window) {
  Region& region = regions[window];
  char name[64];
  name_of(window, name, sizeof name);
  const char* what = write ? "write" : "read";
  if (!region.bound) {
    fault_at(pc, "unbound", "a %s of %s, which nothing is bound to", what, name);
  }
  long long offset = static_cast<long long>(at) - static_cast<long long>(uintptr_t(region.begin));
  fault_at(pc, "bounds", "a %s of %zu bytes at byte %lld of %s, which has %zu", what, bytes, offset, name, region.size);
}

void access(uintptr_t at, size_t bytes, bool write, bool atomic, bool aligned, uintptr_t pc) {
  if (!running) {
    return;
  }
  if (pending.is) {
    settle();
  }
  uintptr_t place = at - uintptr_t(arena);
  if (place >= kWindow * kWindows) {
    if (at >= stacks_begin && at < stacks_end) {
      if (at < running->stack_begin || at + bytes > running->stack_end) {
        fault_at(pc, "stack", "a %s of another thread's variable", write ? "write" : "read");
      }
    } else if (write) {
      fault_at(pc, "global", "a write of something that is neither a buffer nor a variable of the thread");
    } else if (at < 4096) {
      fault_at(pc, "bounds", "a read through a null pointer");
    }
    return;
  }
  statistics.accesses++;
  int window = int(place / kWindow);
  Region& region = regions[window];
  size_t offset = at - uintptr_t(region.begin);
  if (!region.bound || offset > region.size || bytes > region.size - offset) {
    outside(pc, at, bytes, write, window);
  }
  if (aligned && at % bytes != 0) {
    char name[64];
    name_of(window, name, sizeof name);
    fault_at(pc, "alignment", "an access of %zu bytes at byte %zu of %s", bytes, offset, name);
  }
  if (!region.writable) {
    if (write) {
      fault_at(pc, "readonly", "a write at byte %zu of buffer %d, which is an input", offset, window);
    }
    return;
  }
  bool meets = false;
  for (size_t i = offset; i < offset + bytes; i++) {
    if (region.state[i] == kOutside) {
      outside(pc, at, bytes, write, window);
    }
    if (write) {
      meets |= note_write(region.cells[i], window, i, atomic, pc);
      region.state[i] = kWritten;
    } else {
      if (region.state[i] == kUnwritten) {
        char name[64];
        name_of(window, name, sizeof name);
        fault_at(pc, "uninitialised", "a read of byte %zu of %s, which nobody has written", i, name);
      }
      note_read(region.cells[i], window, i, atomic, pc);
    }
  }
  if (meets) {
    pending.is = true;
    pending.at = region.begin + offset;
    pending.pc = pc;
    char name[64];
    name_of(window, name, sizeof name);
    snprintf(
        pending.text, sizeof pending.text, "a second write at byte %zu of %s, without a barrier and of another value",
        offset, name);
    pending.before.assign(pending.at, pending.at + bytes);
  }
}

} // namespace

void settle() {
  if (pending.is) {
    pending.is = false;
    if (memcmp(pending.before.data(), pending.at, pending.before.size()) != 0) {
      fault_at(pending.pc, "race", "%s", pending.text);
    }
    statistics.equal_writes++;
  }
}

void all_stacks(uintptr_t begin, uintptr_t end) {
  stacks_begin = begin;
  stacks_end = end;
}

void bind(const Launch& launch) {
  reserve();
  for (Region& region : regions) {
    region.bound = false;
  }
  declared.clear();
  declared_end = declared_bytes = 0;
  pending.is = false;
  allow_equal_writes = launch.allow_equal_writes;
  for (const Buffer& buffer : launch.buffers) {
    if (buffer.index < 0 || buffer.index >= kMaxBuffers) {
      fault("machine", "there is no buffer %d", buffer.index);
    }
    Region& region = regions[buffer.index];
    resize(region, buffer.bytes.size());
    if (buffer.access == Access::kWrite) {
      memset(region.begin, kGarbage, region.size);
    } else {
      memcpy(region.begin, buffer.bytes.data(), region.size);
    }
    region.writable = buffer.access != Access::kRead;
    if (region.writable) {
      region.state.assign(region.size, buffer.access == Access::kWrite ? kUnwritten : kWritten);
      region.cells.assign(region.size, Cell{});
    }
  }
  Region& shared = regions[kShared];
  resize(shared, kSharedCapacity);
  shared.writable = true;
  shared.state.assign(shared.size, kOutside);
  shared.cells.assign(shared.size, Cell{});
  for (size_t i = 0; i < launch.threadgroup_lengths.size(); i++) {
    Region& region = regions[kShared + 1 + int(i)];
    resize(region, launch.threadgroup_lengths[i]);
    region.writable = true;
    declared_bytes += region.size;
  }
}

void begin_threadgroup() {
  Region& shared = regions[kShared];
  for (const Declared& d : declared) {
    memset(&shared.state[d.offset], kUnwritten, d.bytes);
  }
  std::fill_n(shared.cells.begin(), declared_end, Cell{});
  memset(shared.begin, kGarbage, declared_end);
  for (int i = kShared + 1; i < kWindows; i++) {
    Region& region = regions[i];
    if (region.bound) {
      region.state.assign(region.size, kUnwritten);
      region.cells.assign(region.size, Cell{});
      memset(region.begin, kGarbage, region.size);
    }
  }
}

void collect(Launch& launch, std::vector<std::vector<uint32_t>>& unwritten) {
  for (Buffer& buffer : launch.buffers) {
    Region& region = regions[buffer.index];
    std::vector<uint32_t> missing;
    if (region.writable) {
      buffer.bytes.assign(region.begin, region.begin + region.size);
      for (size_t i = 0; i < region.size; i++) {
        if (region.state[i] == kUnwritten) {
          missing.push_back(uint32_t(i));
        }
      }
    }
    unwritten.push_back(std::move(missing));
  }
}

void* buffer(int index) {
  return index >= 0 && index < kMaxBuffers ? regions[index].begin : nullptr;
}

void* threadgroup_memory(int index) {
  return index >= 0 && index < kMaxThreadgroupBuffers ? regions[kShared + 1 + index].begin : nullptr;
}

void* shared_memory(const void* declaration, size_t bytes) {
  Region& shared = regions[kShared];
  for (const Declared& d : declared) {
    if (d.declaration == declaration) {
      return shared.begin + d.offset;
    }
  }
  declared_bytes += bytes;
  size_t offset = (declared_end + kGap + 15) & ~size_t(15);
  if (declared_bytes > kMaxThreadgroupBytes || offset + bytes + kGap > shared.size) {
    fault("limit", "more than %zu bytes of threadgroup memory", kMaxThreadgroupBytes);
  }
  declared.push_back({declaration, offset, bytes});
  declared_end = offset + bytes;
  memset(&shared.state[offset], kUnwritten, bytes);
  return shared.begin + offset;
}

void atomic_access(const void* at, size_t bytes) {
  access(uintptr_t(at), bytes, true, true, true, uintptr_t(__builtin_return_address(0)));
}

} // namespace bench

// ---- what the compiler calls

#define BENCH_HOOK(name, bytes, write, aligned)                                                                     \
  extern "C" void __tsan_##name(void* at) {                                                                         \
    bench::access(uintptr_t(at), bytes, write, false, aligned, uintptr_t(__builtin_return_address(0)));             \
  }
BENCH_HOOK(read1, 1, false, true)
BENCH_HOOK(read2, 2, false, true)
BENCH_HOOK(read4, 4, false, true)
BENCH_HOOK(read8, 8, false, true)
BENCH_HOOK(read16, 16, false, true)
BENCH_HOOK(write1, 1, true, true)
BENCH_HOOK(write2, 2, true, true)
BENCH_HOOK(write4, 4, true, true)
BENCH_HOOK(write8, 8, true, true)
BENCH_HOOK(write16, 16, true, true)
BENCH_HOOK(unaligned_read2, 2, false, false)
BENCH_HOOK(unaligned_read4, 4, false, false)
BENCH_HOOK(unaligned_read8, 8, false, false)
BENCH_HOOK(unaligned_read16, 16, false, false)
BENCH_HOOK(unaligned_write2, 2, true, false)
BENCH_HOOK(unaligned_write4, 4, true, false)
BENCH_HOOK(unaligned_write8, 8, true, false)
BENCH_HOOK(unaligned_write16, 16, true, false)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}

void __tsan_read_range(void* at, size_t bytes) {
  bench::access(uintptr_t(at), bytes, false, false, false, uintptr_t(__builtin_return_address(0)));
}
void __tsan_write_range(void* at, size_t bytes) {
  bench::access(uintptr_t(at), bytes, true, false, false, uintptr_t(__builtin_return_address(0)));
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  uintptr_t pc = uintptr_t(__builtin_return_address(0));
  bench::access(uintptr_t(from), bytes, false, false, false, pc);
  bench::access(uintptr_t(to), bytes, true, false, false, pc);
  return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  uintptr_t pc = uintptr_t(__builtin_return_address(0));
  bench::access(uintptr_t(from), bytes, false, false, false, pc);
  bench::access(uintptr_t(to), bytes, true, false, false, pc);
  return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  bench::access(uintptr_t(to), bytes, true, false, false, uintptr_t(__builtin_return_address(0)));
  return memset(to, value, bytes);
}
}
