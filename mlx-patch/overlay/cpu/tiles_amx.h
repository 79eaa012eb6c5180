// The processor's tile registers (AMX), as fast_amx.h uses them: 8 tiles of up to 16 rows of 64 bytes.
//
// The instructions stand as text, so that the number of a tile can be a template argument. Tiles hold nothing between two
// kernel calls: a thread that releases them leaves no tile state for the system to save.

#pragma once

#include <cstdint>

namespace zmlx::cpu {

namespace {

// As ldtilecfg reads it.
struct alignas(64) TileShapes {
  uint8_t palette{1};
  uint8_t start_row{0};
  uint8_t reserved[14]{};
  uint16_t row_bytes[16]{};
  uint8_t rows[16]{};

  void set(int tile, int num_rows, int num_bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    row_bytes[tile] = static_cast<uint16_t>(num_bytes);
  }
};

struct HardwareTiles {
  static void configure(const TileShapes& shapes) {
    asm volatile("ldtilecfg %0" : : "m"(shapes));
  }
  static void release() {
    asm volatile("tilerelease");
  }
  template <int tile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  // Rows lie `stride` bytes apart.
  template <int tile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
  }
  // sums[i][j] += a[i][2 k] * b[k][2 j] + a[i][2 k + 1] * b[k][2 j + 1], bf16 into f32.
  template <int sums, int a, int b>
  static void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
  }
};

} // namespace

} // namespace zmlx::cpu
