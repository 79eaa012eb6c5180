// CUDA backend of AddRMSNorm: a block for each row adds, and norms the rounded sum, in one launch in place of two.
//
// The threads of a block, and how many values each has, are those of stock (`dispatch_num_chunks` in
// mlx/backend/cuda/rms_norm.cu), for they decide the order in which squares are added. The row stays in registers.

#include "add_rms_norm/add_rms_norm.h"
#include "cuda/depend.cuh"
#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "cuda/rows.cuh"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

template <typename T>
struct alignas(16) Chunk {
  T values[kReads<T>];
};

template <typename T, int kThreads, int kChunks>
__global__ void add_rms_norm(const T* x, const T* r, const T* weight, T* sum, T* normed, float eps, int size) {
  __shared__ float sums_of_warps[kThreads / 32];
  int64_t row = int64_t{blockIdx.x} * size;
  Chunk<T> chunks[kChunks];
  float squares = 0;
  wait_for_inputs();
  let_next_begin();
#pragma unroll
  for (int i = 0; i < kChunks; i++) {
    int at = (kThreads * i + threadIdx.x) * kReads<T>;
#pragma unroll
    for (int j = 0; j < kReads<T>; j++) {
      bool inside = at + j < size;
      T value = inside ? plus(x[row + at + j], r[row + at + j]) : to<T>(0.0f);
      if (inside) {
        sum[row + at + j] = value;
      }
      chunks[i].values[j] = value;
      squares = __fmaf_rn(static_cast<float>(value), static_cast<float>(value), squares);
    }
  }
  squares = sum_over_warp(squares);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) {
    sums_of_warps[warp] = squares;
  }
  __syncthreads();
  squares = sum_over_warp(lane < kThreads / 32 ? sums_of_warps[lane] : 0);
  float factor = normalizer(squares, size, eps);
#pragma unroll
  for (int i = 0; i < kChunks; i++) {
    int at = (kThreads * i + threadIdx.x) * kReads<T>;
#pragma unroll
    for (int j = 0; j < kReads<T>; j++) {
      if (at + j < size) {
        normed[row + at + j] = normalized(chunks[i].values[j], factor, weight[at + j]);
      }
    }
  }
}

// Most chunks that stock has of a row, of 128 threads each.
constexpr int kMostChunks = 8;

// f(threads, chunks), as stock chooses them.
template <typename T, typename F>
void dispatch_chunks(int size, F&& f) {
  int reads = (size + kReads<T> - 1) / kReads<T>;
  auto with = [&](auto threads, int chunks) {
    switch (chunks) {
      case 1:
        return f(threads, Number<1>());
      case 2:
        return f(threads, Number<2>());
      case 3:
        return f(threads, Number<3>());
      case 4:
        return f(threads, Number<4>());
      case 5:
        return f(threads, Number<5>());
      case 6:
        return f(threads, Number<6>());
      case 7:
        return f(threads, Number<7>());
      default:
        return f(threads, Number<kMostChunks>());
    }
  };
  if (reads <= 64) {
    with(Number<64>(), 1);
  } else if (reads % 128 == 0 && reads / 128 <= kMostChunks) {
    with(Number<128>(), reads / 128);
  } else if (reads % 64 == 0 && reads / 64 <= kMostChunks) {
    with(Number<64>(), reads / 64);
  } else {
    with(Number<128>(), (reads + 127) / 128);
  }
}

} // namespace

} // namespace on_cuda

namespace {

void eval(const AddRMSNorm& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = AddRMSNorm;
  using namespace on_cuda;
  auto& sum = outputs[P::kSum];
  auto& normed = outputs[P::kNormed];
  auto& encoder = cu::get_command_encoder(sum.primitive().stream());
  allocate(sum, encoder);
  allocate(normed, encoder);
  if (sum.size() == 0) {
    return;
  }
  auto x = in_rows(inputs[P::kX], encoder);
  auto r = in_rows(inputs[P::kR], encoder);
  auto weight = in_rows(inputs[P::kWeight], encoder);
  float eps = std::get<0>(primitive.state());
  int size = sum.shape(-1);
  dispatch_type(sum.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_chunks<T>(size, [&](auto threads, auto chunks) {
      constexpr int kThreads = threads, kChunks = chunks;
      unsigned rows = sum.size() / size;
      launch(encoder, add_rms_norm<T, kThreads, kChunks>, rows, kThreads, 0, {x, r, weight}, {sum, normed},
             gpu_ptr<T>(x), gpu_ptr<T>(r), gpu_ptr<T>(weight), gpu_ptr<T>(sum), gpu_ptr<T>(normed), eps, size);
    });
  });
}

std::string refuse_on_cuda(const Request& r) {
  int64_t most = 16 / static_cast<int64_t>(r.dtype.size()) * 128 * on_cuda::kMostChunks;
  if (r.integer("dims") > most) {
    return "stock norms rows of more than " + std::to_string(most) + " values in another order";
  }
  return on_cuda::refuse(r);
}

} // namespace

GpuBackend add_rms_norm_gpu() {
  return gpu_backend<AddRMSNorm, eval>(refuse_on_cuda);
}

} // namespace zmlx
