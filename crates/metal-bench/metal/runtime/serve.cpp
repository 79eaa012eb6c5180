// The program around kernels: reads launches from its standard input and answers on its standard output, until the
// input ends. Numbers are little-endian, texts and bytes follow their length. src/program.rs is the other side.

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "launch.h"

namespace {

using namespace bench;

[[noreturn]] void give_up(const char* why) {
  fprintf(stderr, "metal-bench: %s\n", why);
  _exit(3);
}

void get(void* to, size_t bytes) {
  if (bytes > 0 && fread(to, 1, bytes, stdin) != bytes) {
    give_up("the request ends too early");
  }
}

uint32_t get_u32() {
  uint32_t x;
  get(&x, sizeof x);
  return x;
}

std::vector<unsigned char> get_bytes() {
  std::vector<unsigned char> bytes(get_u32());
  get(bytes.data(), bytes.size());
  return bytes;
}

std::string get_text() {
  auto bytes = get_bytes();
  return {bytes.begin(), bytes.end()};
}

void put_u32(uint32_t x) {
  fwrite(&x, sizeof x, 1, stdout);
}

void put_u64(uint64_t x) {
  fwrite(&x, sizeof x, 1, stdout);
}

void put_bytes(const void* from, size_t bytes) {
  put_u32(uint32_t(bytes));
  fwrite(from, 1, bytes, stdout);
}

void put_text(const std::string& text) {
  put_bytes(text.data(), text.size());
}

Three get_three() {
  uint32_t x = get_u32(), y = get_u32(), z = get_u32();
  return {x, y, z};
}

Launch get_launch() {
  Launch launch;
  launch.kernel = get_text();
  launch.grid_in_threads = get_u32() != 0;
  launch.grid = get_three();
  launch.group = get_three();
  launch.order = Order(get_u32());
  launch.allow_equal_writes = get_u32() != 0;
  launch.flush_denormals = get_u32() != 0;
  for (uint32_t n = get_u32(); n > 0; n--) {
    Buffer buffer;
    buffer.index = int(get_u32());
    buffer.access = Access(get_u32());
    if (buffer.access == Access::kWrite) {
      buffer.bytes.resize(get_u32());
    } else {
      buffer.bytes = get_bytes();
    }
    launch.buffers.push_back(std::move(buffer));
  }
  for (uint32_t n = get_u32(); n > 0; n--) {
    int index = int(get_u32());
    launch.constants.emplace_back(index, get_bytes());
  }
  uint32_t lengths = get_u32();
  if (lengths > uint32_t(kMaxThreadgroupBuffers)) {
    give_up("too many threadgroup buffers");
  }
  for (; lengths > 0; lengths--) {
    launch.threadgroup_lengths.push_back(get_u32());
  }
  return launch;
}

void answer(Launch& launch) {
  Fault fault;
  const Kernel* kernel = find_kernel(launch.kernel);
  bool well = false;
  if (!kernel) {
    fault = {"machine", "there is no kernel " + launch.kernel};
  } else {
    well = run(*kernel, launch, fault);
  }
  put_u32(well);
  if (!well) {
    put_text(fault.kind);
    put_text(fault.message);
    // as an offset from a symbol, wherever the program was loaded
    put_u64(fault.pc);
    put_u64(uint64_t(reinterpret_cast<uintptr_t>(&find_kernel)));
    return;
  }
  std::vector<std::vector<uint32_t>> unwritten;
  collect(launch, unwritten);
  for (size_t i = 0; i < launch.buffers.size(); i++) {
    const Buffer& buffer = launch.buffers[i];
    if (buffer.access == Access::kRead) {
      continue;
    }
    put_u32(uint32_t(buffer.index));
    put_bytes(buffer.bytes.data(), buffer.bytes.size());
    put_u32(uint32_t(unwritten[i].size()));
    fwrite(unwritten[i].data(), sizeof(uint32_t), unwritten[i].size(), stdout);
  }
  put_u64(statistics.accesses);
  put_u64(statistics.meetings);
  put_u64(statistics.barriers);
  put_u64(statistics.equal_writes);
}

} // namespace

int main() {
  for (;;) {
    uint32_t more;
    if (fread(&more, 1, sizeof more, stdin) != sizeof more) {
      return 0;
    }
    Launch launch = get_launch();
    answer(launch);
    fflush(stdout);
  }
}
