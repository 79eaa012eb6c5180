// Products of tiles (cpu/fast_amx.h) against the same sums in f64, without MLX: by tiles in plain C++ on any processor with
// AVX-512 and its bf16, and by the processor's own where there are some.
//
//   tiles [--hardware]

#include <cmath>
#include <random>
#include <vector>

#include "cpu/fast_amx.h"
#include "cpu/tiles_permission.h"
#include "tests/emulated_tiles.h"

namespace zmlx::cpu {

void* kernel_scratch(int64_t bytes) {
  static void* memory = nullptr;
  std::free(memory);
  memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  std::memset(memory, 0xff, bytes); // NaN: nothing may be read before it is written
  return memory;
}

const FloatTables& float_tables() {
  static const FloatTables tables = [] {
    FloatTables t{};
    const float fp4[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    for (int i = 0; i < 16; i++) {
      t.fp4[i] = i & 8 ? -fp4[i & 7] : fp4[i];
    }
    for (int i = 0; i < 256; i++) {
      const int e = i >> 3 & 15, f = i & 7;
      const float size = std::ldexp(e ? 8.0f + f : 2.0f * f / 2, (e ? e : 1) - 10);
      t.fp8[i] = i & 128 ? -size : size;
      t.e8m0[i] = std::ldexp(1.0f, i - 127);
    }
    return t;
  }();
  return tables;
}

} // namespace zmlx::cpu

namespace {

using namespace zmlx::cpu;

std::mt19937 rng(7);
int cases = 0, failures = 0;

uint16_t bf16(float v) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, v) >> 16);
}
float value(uint16_t bits) {
  return __builtin_bit_cast(float, uint32_t{bits} << 16);
}
uint16_t normal() {
  return bf16(std::normal_distribution<float>()(rng));
}

struct Weights {
  Mode mode;
  int bits;
  int group;
};

int code_at(const uint8_t* row, int64_t i, int bits) {
  int code = 0;
  for (int b = 0; b < bits; b++) {
    const int64_t bit = i * bits + b;
    code |= (row[bit / 8] >> bit % 8 & 1) << b;
  }
  return code;
}

// `gap`: bytes between rows of w that belong to nobody. Columns n0 .. n1 of N.
void check(BlockKernel (*kernel_of)(const QuantView&), Weights w, int m, int64_t n0, int64_t n1, int64_t K, int64_t gap) {
  const int64_t N = n1 + 3, groups = K / w.group, row_bytes = K * w.bits / 8;
  const bool affine = w.mode == Mode::Affine;
  std::vector<uint8_t> codes(N * (row_bytes + gap));
  for (auto& c : codes) {
    c = rng();
  }
  std::vector<uint16_t> scales(N * groups), biases(N * groups), x(m * K);
  std::vector<uint8_t> small_scales(N * groups);
  for (int64_t i = 0; i < N * groups; i++) {
    scales[i] = normal();
    biases[i] = normal();
    small_scales[i] = w.mode == Mode::Nvfp4 ? 0x20 + rng() % 32 : 118 + rng() % 16;
  }
  for (auto& v : x) {
    v = normal();
  }
  QuantView q{};
  q.w = codes.data();
  q.scales = affine ? reinterpret_cast<uint8_t*>(scales.data()) : small_scales.data();
  q.biases = affine ? reinterpret_cast<uint8_t*>(biases.data()) : nullptr;
  q.w_stride = row_bytes + gap;
  q.scale_stride = groups * (affine ? 2 : 1);
  q.bias_stride = groups * 2;
  q.N = N;
  q.K = K;
  q.bits = w.bits;
  q.group_size = w.group;
  q.mode = w.mode;
  q.dtype = DType::BF16;
  q.transpose = true;

  const int64_t width = n1 - n0;
  constexpr uint16_t kUntouched = 0xabcd;
  std::vector<uint16_t> y(m * (width + 5), kUntouched);
  const void* xs[kMaxRows];
  void* ys[kMaxRows];
  for (int i = 0; i < m; i++) {
    xs[i] = x.data() + i * K;
    ys[i] = y.data() + i * (width + 5);
  }
  kernel_of(q)(q, n0, n1, m, xs, ys);

  const auto& tables = float_tables();
  cases++;
  bool bad = false;
  for (int i = 0; i < m; i++) {
    const uint16_t* row = y.data() + i * (width + 5);
    for (int64_t n = n0; n < n1; n++) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < K; k++) {
        const int code = code_at(codes.data() + n * q.w_stride, k, w.bits);
        const int64_t g = n * groups + k / w.group;
        const double weight = affine ? double(value(scales[g])) * code + value(biases[g])
                                     : double(w.bits == 8 ? tables.fp8[code] : tables.fp4[code]) *
                (w.mode == Mode::Nvfp4 ? tables.fp8[small_scales[g]] : tables.e8m0[small_scales[g]]);
        const double part = affine ? std::abs(double(value(scales[g])) * code) + std::abs(value(biases[g])) : std::abs(weight);
        sum += weight * value(x[i * K + k]);
        size += part * std::abs(value(x[i * K + k]));
      }
      const double error = std::abs(value(row[n - n0]) - sum);
      // half a unit of bf16, and what adding up in f32 loses
      bad |= !(error <= std::abs(sum) / 255 + size * 4e-7);
    }
    for (int64_t n = width; n < width + 5; n++) {
      bad |= row[n] != kUntouched;
    }
  }
  if (bad) {
    failures++;
    std::printf(
        "DIFFERS mode %d, %d bits, groups of %d: %d rows, columns %ld .. %ld, K %ld, gap %ld\n",
        int(w.mode), w.bits, w.group, m, long(n0), long(n1), long(K), long(gap));
  }
}

void check_all(BlockKernel (*kernel_of)(const QuantView&)) {
  std::vector<Weights> all = {{Mode::Mxfp4, 4, 32}, {Mode::Mxfp8, 8, 32}, {Mode::Nvfp4, 4, 16}};
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      all.push_back({Mode::Affine, bits, group});
    }
  }
  for (auto w : all) {
    for (int m : {1, 7, 16, 17, 32}) {
      for (int groups : {1, 3, 16, 35}) {
        check(kernel_of, w, m, 0, m == 7 ? 75 : 6, groups * w.group, 0);
        check(kernel_of, w, m, 32, m == 17 ? 96 : 49, groups * w.group, 16);
      }
    }
  }
}

} // namespace

int main(int argc, char** argv) {
  const bool hardware = argc == 2 && !std::strcmp(argv[1], "--hardware");
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi")) {
    std::puts("SKIPPED: this processor has no AVX-512 with bf16");
    return 0;
  }
  if (hardware && !request_tiles()) {
    std::puts("SKIPPED: this processor has no tiles (AMX)");
    return 0;
  }
  if (hardware) {
    check_all(tile_kernel<HardwareTiles>);
  } else {
    check_all(tile_kernel<zmlx::tests::EmulatedTiles>);
    failures += !zmlx::tests::EmulatedTiles::released();
  }
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures > 0;
}
