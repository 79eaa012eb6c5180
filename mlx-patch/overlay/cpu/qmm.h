// Quantized matrix products on the CPU, by raw pointers: this header knows no framework.
//
// A kernel computes columns n0 .. n1 of x @ w for m rows of x. Rows of x and y are given by pointers, so rows that
// were routed to one expert need not lie together.

#pragma once

#include <cstdint>

namespace zmlx::cpu {

enum class DType : uint8_t { F32, F16, BF16 };
enum class Mode : uint8_t { Affine, Mxfp4, Mxfp8, Nvfp4 };

constexpr int64_t size_of(DType t) {
  return t == DType::F32 ? 4 : 2;
}

// One matrix, by rows that may lie apart.
//   transpose:      w [N, K * bits / 8] bytes, scales [N, K / group_size]
//   not transposed: w [K, N * bits / 8] bytes, scales [K, N / group_size]
// Weight i of a row occupies bits [i * bits, (i + 1) * bits) of that row, little endian. Scales and biases are of type
// `dtype` in affine mode; in the other modes scales are bytes (e8m0, or e4m3 for nvfp4) and there are no biases.
struct QuantView {
  const uint8_t* w;
  const uint8_t* scales;
  const uint8_t* biases;
  int64_t w_stride; // bytes from one row to the next
  int64_t scale_stride;
  int64_t bias_stride;
  int64_t N;
  int64_t K;
  int bits;
  int group_size;
  Mode mode;
  DType dtype;
  bool transpose;
};

// m rows: x[i] points to K values, y[i] to the place of column n0. n0 and n1 are multiples of kColumnBlock, or of
// kTransposedBlock where the weights are transposed (n1 may also be N).
using BlockKernel =
    void (*)(const QuantView& q, int64_t n0, int64_t n1, int m, const void* const* x, void* const* y);

// One row of x, K values, times columns n0 .. n1 of a matrix: at most kTransposedBlock of them, n0 a multiple of that.
struct Slice {
  QuantView q;
  int64_t n0;
  int64_t n1;
  const void* x;
  void* y;
};

// Any number of slices of transposed matrices that are alike but for where they are.
using SliceKernel = void (*)(const Slice* slices, int count);

// A multiple of every group size, and of the rows that any kernel takes at once.
constexpr int64_t kColumnBlock = 128;
// Columns of transposed weights that lie in lanes together.
constexpr int64_t kTransposedBlock = 32;
// Rows of x that one call of a kernel takes at most.
constexpr int kMaxRows = 32;

struct Kernels {
  const char* isa;
  BlockKernel exact;
  BlockKernel fast;
  // One or two rows of x, exact: a whole block of columns hides the latency of their sums, a narrower one waits for it.
  bool wants_whole_blocks = false;
  // Exact, where whole blocks are wanted: four slices hide it too.
  SliceKernel exact_slices = nullptr;
};

// The kernels that runtime dispatch picked, or that set_isa forced.
const Kernels& kernels();
bool set_isa(const char* isa);
const char* isa();

// Tables for the modes whose scales and weights are small floats: built once by MLX's own conversions.
struct FloatTables {
  float fp4[16];
  float fp8[256]; // e4m3 weights; also nvfp4 scales
  float e8m0[256]; // mxfp4, mxfp8 scales, before rounding to the activation type
  float e8m0_f16[256]; // the same, rounded to f16
};
const FloatTables& float_tables();

// A 64-byte aligned buffer of the calling thread for one kernel call.
void* kernel_scratch(int64_t bytes);

// Per instruction set; null where the build has none. Defined in qmm_<isa>.cpp.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* amx_kernels();
const Kernels* neon_kernels();

} // namespace zmlx::cpu
