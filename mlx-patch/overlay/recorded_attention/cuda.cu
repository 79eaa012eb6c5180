// CUDA backend of RecordedAttention: stock's vector kernel (`kernel_sdpav_1pass` in
// mlx/backend/cuda/scaled_dot_product_attention.cu), a block of 32 warps for each head, of which warp w takes the keys w,
// w + 32, ... one after the other. What decides the bits is that order, and it does not depend on how many keys there are,
// so their number is data here. Keys are read four ahead. The token's own key and value come from where they were computed,
// and one block of those that share them writes them down.

#include "recorded_attention/recorded_attention.h"

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

#include <cfloat>
#include <cmath>

#include "cuda/dispatch.h"
#include "cuda/host.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

namespace cg = cooperative_groups;

constexpr int kWarps = 32;
// Keys that a warp has under way.
constexpr int kAhead = 4;

template <typename T>
struct Cache {
  const T* k;
  const T* v;
  T* keys;
  T* values;
  const int* lengths;
  int capacity;
};

template <typename T, int kPart>
struct alignas(sizeof(T) * (kPart % 2 == 0 ? kPart : 1)) Part {
  T values[kPart];
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kWarps * 32)
    recorded_attention(const T* q_in, Cache<T> cache, const T* sinks, T* out, int group, float scale) {
  constexpr int kPart = kDim / 32; // of a head, in each lane
  using Vector = Part<T, kPart>;
  __shared__ float outputs[kWarps][33];
  __shared__ float max_scores[kWarps];
  __shared__ float sums[kWarps];

  auto block = cg::this_thread_block();
  auto warp_group = cg::tiled_partition<32>(block);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int head = blockIdx.x, heads = gridDim.x, row = blockIdx.y;
  int64_t kv_head = int64_t{row} * (heads / group) + head / group;
  int length = min(max(cache.lengths[row], 1), cache.capacity);

  auto* keys = reinterpret_cast<Vector*>(cache.keys + kv_head * cache.capacity * kDim);
  auto* values = reinterpret_cast<Vector*>(cache.values + kv_head * cache.capacity * kDim);
  Vector own_k = reinterpret_cast<const Vector*>(cache.k + kv_head * kDim)[lane];
  Vector own_v = reinterpret_cast<const Vector*>(cache.v + kv_head * kDim)[lane];
  if (head % group == 0 && warp == 0) {
    keys[(length - 1) * 32 + lane] = own_k;
    values[(length - 1) * 32 + lane] = own_v;
  }

  const float scale_log2 = scale * M_LOG2E;
  float q[kPart], o[kPart] = {};
  Vector read = reinterpret_cast<const Vector*>(q_in + (int64_t{row} * heads + head) * kDim)[lane];
#pragma unroll
  for (int j = 0; j < kPart; j++) {
    q[j] = scale_log2 * static_cast<float>(read.values[j]);
  }
  float max_score = -FLT_MAX, sum = 0;
  if (sinks && warp == 0) {
    max_score = M_LOG2E * static_cast<float>(sinks[head]);
    sum = 1;
  }

  for (int first = warp; first < length; first += kWarps * kAhead) {
    Vector k[kAhead], v[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; a++) {
      int i = first + a * kWarps;
      if (i < length - 1) {
        k[a] = keys[i * 32 + lane];
        v[a] = values[i * 32 + lane];
      } else {
        k[a] = own_k;
        v[a] = own_v;
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; a++) {
      if (first + a * kWarps >= length) {
        break;
      }
      float score = 0;
#pragma unroll
      for (int j = 0; j < kPart; j++) {
        score += q[j] * static_cast<float>(k[a].values[j]);
      }
      score = cg::reduce(warp_group, score, cg::plus<float>());
      float new_max = max(max_score, score);
      float factor = exp2f(max_score - new_max);
      float exp_score = exp2f(score - new_max);
      max_score = new_max;
      sum = sum * factor + exp_score;
#pragma unroll
      for (int j = 0; j < kPart; j++) {
        o[j] = o[j] * factor + exp_score * static_cast<float>(v[a].values[j]);
      }
    }
  }

  if (lane == 0) {
    max_scores[warp] = max_score;
    sums[warp] = sum;
  }
  block.sync();
  max_score = max_scores[lane];
  float new_max = cg::reduce(warp_group, max_score, cg::greater<float>());
  float factor = exp2f(max_score - new_max);
  sum = cg::reduce(warp_group, sums[lane] * factor, cg::plus<float>());
  sum = sum == 0 ? 0 : __frcp_rn(sum);
#pragma unroll
  for (int j = 0; j < kPart; j++) {
    outputs[lane][warp] = o[j];
    block.sync();
    float of_warp = outputs[warp][lane] * factor;
    o[j] = cg::reduce(warp_group, of_warp, cg::plus<float>()) * sum;
    block.sync();
  }
  if (lane == 0) {
    T* y = out + (int64_t{row} * heads + head) * kDim + warp * kPart;
#pragma unroll
    for (int j = 0; j < kPart; j++) {
      y[j] = static_cast<T>(o[j]);
    }
  }
}

template <typename F>
void dispatch_head_dim(int head_dim, F&& f) {
  switch (head_dim) {
    case 64:
      return f(Number<64>());
    case 96:
      return f(Number<96>());
    case 128:
      return f(Number<128>());
  }
  unexpected("width of heads");
}

} // namespace

} // namespace on_cuda

namespace {

void eval(const RecordedAttention& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = RecordedAttention;
  using namespace on_cuda;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  allocate(out, encoder);
  if (out.size() == 0) {
    return;
  }
  auto keys = written_in_place(inputs[P::kKeys], "keys");
  auto values = written_in_place(inputs[P::kValues], "values");
  auto q = in_rows(inputs[P::kQ], encoder);
  auto k = in_rows(inputs[P::kK], encoder);
  auto v = in_rows(inputs[P::kV], encoder);
  auto& lengths = inputs[P::kLengths];
  auto sinks = inputs.size() > P::kSinks ? in_rows(inputs[P::kSinks], encoder) : q;
  bool has_sinks = inputs.size() > P::kSinks;
  dispatch_type(out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_head_dim(q.shape(3), [&](auto dim) {
      constexpr int kDim = dim;
      Cache<T> cache = {gpu_ptr<T>(k),      gpu_ptr<T>(v),           gpu_ptr<T>(keys),
                        gpu_ptr<T>(values), gpu_ptr<int>(lengths), keys.shape(2)};
      launch(encoder, recorded_attention<T, kDim>, dim3(q.shape(1), q.shape(0)), kWarps * 32, 0,
             {q, k, v, lengths, sinks}, {keys, values, out}, gpu_ptr<T>(q), cache,
             has_sinks ? gpu_ptr<T>(sinks) : nullptr, gpu_ptr<T>(out), q.shape(1) / keys.shape(1),
             std::get<0>(primitive.state()));
    });
  });
}

std::string refuse_on_cuda(const Request& r) {
  auto dim = r.integer("head_dim");
  if (dim != 64 && dim != 96 && dim != 128) {
    return "stock has no vector attention over heads of " + std::to_string(dim) + " values";
  }
  return on_cuda::refuse(r);
}

} // namespace

GpuBackend recorded_attention_gpu() {
  return gpu_backend<RecordedAttention, eval>(refuse_on_cuda);
}

} // namespace zmlx
