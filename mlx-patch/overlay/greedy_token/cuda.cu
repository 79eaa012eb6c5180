// CUDA backend of GreedyToken: logsumexp, subtraction and argmax in one launch.
//
// The token is the first one whose logprob, rounded to the type, equals the largest: rounding is monotone, so the largest is
// that of the largest logit. The rounding depends on logsumexp as stock computes it (mlx/backend/cuda/logsumexp.cu), by up to
// 1,024 threads of a block of which each keeps a sum of its own.

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

#include "cuda/depend.cuh"
#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "cuda/rows.cuh"
#include "greedy_token/greedy_token.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

namespace cg = cooperative_groups;

// As stock chooses it, whose loop is this one.
template <typename T>
struct Logits {
  const T* values; // [rows, size]
  uint32_t* tokens; // [rows]
  int size;
};

// A thread's share of a row at a time.
template <typename T>
struct alignas(16) Few {
  T values[kReads<T>];
};

template <typename T>
__device__ Few<T> few_of(const T* row, int index, int size, bool aligned) {
  if (aligned && (index + 1) * kReads<T> <= size) {
    return reinterpret_cast<const Few<T>*>(row)[index];
  }
  Few<T> few;
#pragma unroll
  for (int i = 0; i < kReads<T>; i++) {
    int at = index * kReads<T> + i;
    few.values[i] = at < size ? row[at] : to<T>(-INFINITY);
  }
  return few;
}

template <typename T>
__device__ T minus(T a, T b) {
  if constexpr (std::is_same_v<T, float>) {
    return __fsub_rn(a, b);
  } else {
    return __hsub_rn(a, b);
  }
}

template <typename T, int kThreads>
__global__ __launch_bounds__(kThreads) void greedy_token(const __grid_constant__ Logits<T> p) {
  constexpr int kAhead = 4, kWarps = kThreads / 32;
  __shared__ float maxima[32], sums[32];
  __shared__ uint32_t first;
  auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  int thread = threadIdx.x, lane = thread % 32, of_warp = thread / 32;
  int64_t row = blockIdx.x;
  if (thread == 0) {
    first = 0xffffffff;
  }
  wait_for_inputs();
  let_next_begin();
  auto* logits = p.values + row * p.size;
  bool aligned = row * p.size % kReads<T> == 0;
  int rounds = (p.size + kThreads * kReads<T> - 1) / (kThreads * kReads<T>);

  float most = -3.402823466e+38f, sum = 0, before;
  for (int begin = 0; begin < rounds; begin += kAhead) {
    Few<T> few[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; a++) {
      if (begin + a < rounds) {
        few[a] = few_of(logits, (begin + a) * kThreads + thread, p.size, aligned);
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; a++) {
      if (begin + a < rounds) {
        before = most;
#pragma unroll
        for (int i = 0; i < kReads<T>; i++) {
          float value = static_cast<float>(few[a].values[i]);
          most = most < value ? value : most;
        }
        // contracted as the compiler contracts stock's
        sum = __fmaf_rn(sum, __expf(before - most), __expf(static_cast<float>(few[a].values[0]) - most));
#pragma unroll
        for (int i = 1; i < kReads<T>; i++) {
          sum = __fadd_rn(sum, __expf(static_cast<float>(few[a].values[i]) - most));
        }
      }
    }
  }
  before = most;
  most = cg::reduce(warp, most, cg::greater<float>());
  sum = cg::reduce(warp, __fmul_rn(sum, __expf(before - most)), cg::plus<float>());
  auto share = [&](float* all, float value) {
    if (lane == 0) {
      all[of_warp] = value;
    }
    __syncthreads();
  };
  before = most;
  share(maxima, most);
  most = cg::reduce(warp, lane < kWarps ? maxima[lane] : -3.402823466e+38f, cg::greater<float>());
  share(sums, __fmul_rn(sum, __expf(before - most)));
  sum = cg::reduce(warp, lane < kWarps ? sums[lane] : 0.0f, cg::plus<float>());
  T logsumexp = to<T>(isinf(most) ? most : logf(sum) + most);

  T best = minus(to<T>(most), logsumexp);
  uint32_t found = 0xffffffff;
  for (int r = 0; r < rounds && found == 0xffffffff; r++) {
    int index = r * kThreads + thread;
    auto few = few_of(logits, index, p.size, aligned);
#pragma unroll
    for (int i = kReads<T> - 1; i >= 0; i--) {
      int at = index * kReads<T> + i;
      if (at < p.size && minus(few.values[i], logsumexp) == best) {
        found = at;
      }
    }
  }
  found = __reduce_min_sync(0xffffffff, found);
  if (lane == 0) {
    atomicMin(&first, found);
  }
  __syncthreads();
  if (thread == 0) {
    p.tokens[row] = first == 0xffffffff ? 0 : first;
  }
}

// The kernel for rows of so many logits (`dispatch_block_dim` in mlx/backend/cuda/kernel_utils.cuh), f(kernel, threads).
template <typename T, typename F>
void dispatch_threads(int size, F&& f) {
  int threads = (size + kReads<T> - 1) / kReads<T>;
  if (threads <= 32) {
    f(greedy_token<T, 32>, 32);
  } else if (threads <= 64) {
    f(greedy_token<T, 64>, 64);
  } else if (threads <= 128) {
    f(greedy_token<T, 128>, 128);
  } else if (threads <= 256) {
    f(greedy_token<T, 256>, 256);
  } else if (threads <= 512) {
    f(greedy_token<T, 512>, 512);
  } else {
    f(greedy_token<T, 1024>, 1024);
  }
}

} // namespace

} // namespace on_cuda

namespace {

void eval(const GreedyToken&, const std::vector<array>& inputs, std::span<array> outputs) {
  using namespace on_cuda;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  allocate(out, encoder);
  if (out.size() == 0) {
    return;
  }
  auto logits = in_rows(inputs[GreedyToken::kLogits], encoder);
  dispatch_type(logits.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    Logits<T> parameters = {gpu_ptr<T>(logits), gpu_ptr<uint32_t>(out), logits.shape(-1)};
    dispatch_threads<T>(logits.shape(-1), [&](auto kernel, unsigned threads) {
      launch(encoder, kernel, static_cast<unsigned>(out.size()), threads, 0, {logits}, {out}, parameters);
    });
  });
}

} // namespace

GpuBackend greedy_token_gpu() {
  return gpu_backend<GreedyToken, eval>(on_cuda::refuse);
}

} // namespace zmlx
