// Tile registers in plain C++, behind the functions of cpu/tiles_amx.h: what the manual says of each instruction, with
// every use of a tile that is not configured, or whose shapes do not fit, told and fatal.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/tiles_amx.h"

namespace zmlx::tests {

struct EmulatedTiles {
  static void configure(const cpu::TileShapes& shapes) {
    require(shapes.palette == 1 && shapes.start_row == 0, "palette");
    for (int t = 0; t < 8; t++) {
      require(shapes.rows[t] <= 16 && shapes.row_bytes[t] <= 64 && shapes.row_bytes[t] % 4 == 0, "shape");
    }
    shapes_ = shapes;
    configured_ = true;
    std::memset(data_, 0, sizeof(data_));
  }
  static void release() {
    require(configured_, "release");
    configured_ = false;
  }
  template <int tile>
  static void zero() {
    rows(tile);
    std::memset(data_[tile], 0, sizeof(data_[tile]));
  }
  template <int tile>
  static void load(const void* from, int64_t stride) {
    zero<tile>();
    for (int r = 0; r < rows(tile); r++) {
      std::memcpy(data_[tile][r], static_cast<const char*>(from) + r * stride, shapes_.row_bytes[tile]);
    }
  }
  template <int tile>
  static void store(void* to, int64_t stride) {
    for (int r = 0; r < rows(tile); r++) {
      std::memcpy(static_cast<char*>(to) + r * stride, data_[tile][r], shapes_.row_bytes[tile]);
    }
  }
  template <int sums, int a, int b>
  static void dot() {
    require(rows(sums) == rows(a), "rows of the sums");
    require(shapes_.row_bytes[sums] == shapes_.row_bytes[b], "columns of the sums");
    require(shapes_.row_bytes[a] == 4 * rows(b), "inner size");
    for (int m = 0; m < rows(a); m++) {
      for (int n = 0; n < shapes_.row_bytes[b] / 4; n++) {
        float even = 0, odd = 0, sum;
        for (int k = 0; k < rows(b); k++) {
          even += bf16(a, m, 2 * k) * bf16(b, k, 2 * n);
          odd += bf16(a, m, 2 * k + 1) * bf16(b, k, 2 * n + 1);
        }
        std::memcpy(&sum, data_[sums][m] + 4 * n, 4);
        sum += even + odd;
        std::memcpy(data_[sums][m] + 4 * n, &sum, 4);
      }
    }
  }
  static bool released() {
    return !configured_;
  }

 private:
  static void require(bool holds, const char* what) {
    if (!holds) {
      std::fprintf(stderr, "tiles: %s\n", what);
      std::abort();
    }
  }
  static int rows(int tile) {
    require(configured_ && shapes_.rows[tile] > 0, "a tile is used that is not configured");
    return shapes_.rows[tile];
  }
  static float bf16(int tile, int row, int i) {
    uint16_t bits;
    std::memcpy(&bits, data_[tile][row] + 2 * i, 2);
    const bool denormal = (bits & 0x7f80) == 0;
    return denormal ? 0.0f : __builtin_bit_cast(float, uint32_t{bits} << 16);
  }

  static inline cpu::TileShapes shapes_;
  static inline bool configured_ = false;
  static inline uint8_t data_[8][16][64];
};

} // namespace zmlx::tests
