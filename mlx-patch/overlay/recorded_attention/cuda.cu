// CUDA backend of RecordedAttention, with the bits of stock's vector kernels (`kernel_sdpav_1pass`, and for more than 1,024
// keys `kernel_sdpav_2pass_1` and `_2`, in mlx/backend/cuda/scaled_dot_product_attention.cu).
//
// A warp takes every 32nd key, or every 256th, one after the other; what decides the bits is that order, and it does not
// depend on how many keys there are, so their number is data here. Keys are read four ahead. The token's own key and value
// come from where they were computed, and one block of those that share them writes them down; norm and rotation of the
// head, and of its key, are the work of two warps of every block.

#include "recorded_attention/recorded_attention.h"

#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

#include <cfloat>
#include <cmath>

#include "cuda/depend.cuh"
#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "cuda/norm_rope.cuh"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

namespace cg = cooperative_groups;

// Keys that a warp has under way.
constexpr int kAhead = 4;
// Blocks that share the keys of a head where there are many.
constexpr int kShares = 32;

template <typename T>
struct Step {
  const T* q; // [B, H, D]
  const T* k; // [B, Hkv, D]
  const T* v;
  T* keys; // [B, Hkv, capacity, D]
  T* values;
  const int* lengths; // [B]
  const T* sinks; // [H], or null
  T* out; // [B, H, D]
  float* partials; // [B, H, kShares, D]
  float2* sums; // [B, H, kShares], with the largest score
  int capacity;
  int keep, shift; // of a ring
  bool is_ring;
  int group; // heads of q for each of k
  float scale;
  const int* position; // or null: q and k are as they should be
  NormRope<T> norm_rope_q, norm_rope_k;
};

template <typename T, int kPart>
struct alignas(sizeof(T) * (kPart % 2 == 0 ? kPart : 1)) Part {
  T values[kPart];
};

// What one warp has of a head.
template <int kPart>
struct Softmax {
  float o[kPart] = {};
  float most = -FLT_MAX;
  float sum = 0;
};

// The row of a ring that the last of `seen` tokens is written to.
template <typename T>
__device__ int slot(const Step<T>& p, int seen) {
  int row = seen - 1 + p.shift;
  row = row < p.capacity ? row : p.keep + (row - p.capacity) % (p.capacity - p.keep);
  return min(max(row, 0), p.capacity - 1);
}

// Every `kStride`th key from `first` on.
template <typename T, int kDim, int kStride>
__device__ Softmax<kDim / 32> over_keys(
    const Step<T>& p,
    float scale_log2,
    bool with_sink,
    int first,
    int row,
    bool writes,
    T (&own)[4][kDim]) {
  constexpr int kPart = kDim / 32;
  using Vector = Part<T, kPart>;
  auto warp_group = cg::tiled_partition<32>(cg::this_thread_block());
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int head = blockIdx.x, heads = gridDim.x;
  int64_t kv_head = int64_t{row} * (heads / p.group) + head / p.group;
  int64_t q_head = int64_t{row} * heads + head;
  int seen = max(p.lengths[row], 1);
  int length = min(seen, p.capacity);
  int newest = p.is_ring ? slot(p, seen) : length - 1;
  auto* keys = reinterpret_cast<Vector*>(p.keys + kv_head * p.capacity * kDim);
  auto* values = reinterpret_cast<Vector*>(p.values + kv_head * p.capacity * kDim);

  Vector k[kAhead], v[kAhead];
  auto ask = [&](int a, int i) {
    if (i < length && i != newest) {
      k[a] = keys[i * 32 + lane];
      v[a] = values[i * 32 + lane];
    }
  };
#pragma unroll
  for (int a = 0; a < kAhead; a++) {
    ask(a, first + a * kStride);
  }

  // where the token stands was known when the step began, and so were the keys and values before it
  Turn turn;
  if (p.position && warp < 2) {
    turn = (warp == 0 ? p.norm_rope_q : p.norm_rope_k).turn(*p.position, lane);
  }
  wait_for_inputs();
  let_next_begin();

  // the token's own query and key
  Vector own_v = reinterpret_cast<const Vector*>(p.v + kv_head * kDim)[lane];
  Vector own_k, own_q;
  if (p.position) {
    if (warp < 2) {
      auto& norm_rope = warp == 0 ? p.norm_rope_q : p.norm_rope_k;
      norm_rope(warp == 0 ? p.q + q_head * kDim : p.k + kv_head * kDim, own[2 + warp], own[warp], turn, lane);
    }
    __syncthreads();
    own_q = reinterpret_cast<const Vector*>(own[0])[lane];
    own_k = reinterpret_cast<const Vector*>(own[1])[lane];
  } else {
    own_q = reinterpret_cast<const Vector*>(p.q + q_head * kDim)[lane];
    own_k = reinterpret_cast<const Vector*>(p.k + kv_head * kDim)[lane];
  }
  if (writes && warp == 0) {
    keys[newest * 32 + lane] = own_k;
    values[newest * 32 + lane] = own_v;
  }

  float q[kPart];
#pragma unroll
  for (int j = 0; j < kPart; j++) {
    q[j] = scale_log2 * static_cast<float>(own_q.values[j]);
  }
  Softmax<kPart> s;
  if (p.sinks && with_sink && warp == 0) {
    s.most = M_LOG2E * static_cast<float>(p.sinks[head]);
    s.sum = 1;
  }
  for (int at = first; at < length; at += kStride * kAhead) {
#pragma unroll
    for (int a = 0; a < kAhead; a++) {
      int i = at + a * kStride;
      if (i >= length) {
        break;
      }
      Vector this_k = i == newest ? own_k : k[a], this_v = i == newest ? own_v : v[a];
      ask(a, i + kStride * kAhead);
      float score = 0;
#pragma unroll
      for (int j = 0; j < kPart; j++) {
        score += q[j] * static_cast<float>(this_k.values[j]);
      }
      score = cg::reduce(warp_group, score, cg::plus<float>());
      float new_most = max(s.most, score);
      float factor = exp2f(s.most - new_most);
      float exp_score = exp2f(score - new_most);
      s.most = new_most;
      s.sum = s.sum * factor + exp_score;
#pragma unroll
      for (int j = 0; j < kPart; j++) {
        s.o[j] = s.o[j] * factor + exp_score * static_cast<float>(this_v.values[j]);
      }
    }
  }
  return s;
}

// Joins what 32 warps have of a head: their lanes' `o`, and of each warp, in the lane of its number, its sum and its largest
// score.
template <typename T, int kPart>
__device__ void join(float (&o)[kPart], float most, float sum, float (&outputs)[32][33], T* y) {
  auto block = cg::this_thread_block();
  auto warp_group = cg::tiled_partition<32>(block);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float new_most = cg::reduce(warp_group, most, cg::greater<float>());
  float factor = exp2f(most - new_most);
  sum = cg::reduce(warp_group, sum * factor, cg::plus<float>());
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
#pragma unroll
    for (int j = 0; j < kPart; j++) {
      y[warp * kPart + j] = static_cast<T>(o[j]);
    }
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(1024) few_keys(const __grid_constant__ Step<T> p) {
  __shared__ float outputs[32][33];
  __shared__ float2 of_warps[32];
  __shared__ __align__(16) T own[4][kDim];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.y;
  const float scale_log2 = p.scale * M_LOG2E;
  auto s = over_keys<T, kDim, 32>(p, scale_log2, true, warp, row, blockIdx.x % p.group == 0, own);
  if (lane == 0) {
    of_warps[warp] = {s.sum, s.most};
  }
  __syncthreads();
  auto [sum, most] = of_warps[lane];
  join(s.o, most, sum, outputs, p.out + (int64_t{row} * gridDim.x + blockIdx.x) * kDim);
}

template <typename T, int kDim>
__global__ void __launch_bounds__(256) many_keys(const __grid_constant__ Step<T> p) {
  constexpr int kWarps = 8, kPart = kDim / 32;
  __shared__ float outputs[kWarps][33];
  __shared__ float most_of_warps[kWarps];
  __shared__ float sums_of_warps[kWarps];
  __shared__ __align__(16) T own[4][kDim];
  auto block = cg::this_thread_block();
  auto warp_group = cg::tiled_partition<32>(block);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.z, share = blockIdx.y;
  const float scale_log2 = p.scale * 1.44269504089f;
  bool writes = blockIdx.x % p.group == 0 && share == 0;
  auto s = over_keys<T, kDim, kShares * kWarps>(p, scale_log2, share == 0, share * kWarps + warp, row, writes, own);
  if (lane == 0) {
    most_of_warps[warp] = s.most;
    sums_of_warps[warp] = s.sum;
  }
  block.sync();
  float most = lane < kWarps ? most_of_warps[lane] : -1e9;
  float new_most = cg::reduce(warp_group, most, cg::greater<float>());
  float factor = exp2f(most - new_most);
  float sum = lane < kWarps ? sums_of_warps[lane] : 0.f;
  sum = cg::reduce(warp_group, sum * factor, cg::plus<float>());
  int64_t at = (int64_t{row} * gridDim.x + blockIdx.x) * kShares + share;
  if (threadIdx.x == 0) {
    p.sums[at] = {sum, new_most};
  }
  auto of_warp = exp2f(most_of_warps[warp] - new_most);
#pragma unroll
  for (int j = 0; j < kPart; j++) {
    outputs[warp][lane] = s.o[j] * of_warp;
    block.sync();
    if (warp == 0) {
      float total = outputs[0][lane];
#pragma unroll
      for (int other = 1; other < kWarps; other++) {
        total += outputs[other][lane];
      }
      p.partials[at * kDim + kPart * lane + j] = total;
    }
    block.sync();
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(1024) join_shares(const __grid_constant__ Step<T> p) {
  constexpr int kPart = kDim / 32;
  __shared__ float outputs[32][33];
  wait_for_inputs();
  let_next_begin();
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t head = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  auto [sum, most] = p.sums[head * kShares + lane];
  float o[kPart];
#pragma unroll
  for (int j = 0; j < kPart; j++) {
    o[j] = p.partials[(head * kShares + warp) * kDim + kPart * lane + j];
  }
  join(o, most, sum, outputs, p.out + head * kDim);
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

template <typename T>
NormRope<T> norm_rope_of(const QKNormRope::State& state, const array* weight, const array* freqs, int head_dim) {
  return {
      weight ? gpu_ptr<T>(*weight) : nullptr,
      freqs ? gpu_ptr<float>(*freqs) : nullptr,
      head_dim,
      state.dims,
      freqs ? static_cast<int>(freqs->strides(0)) : 0,
      state.traditional,
      state.eps,
      std::log2(state.base),
      state.scale,
      state.input_scale};
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
  std::vector<array> in;
  for (auto& input : inputs) {
    bool is_buffer = in.size() == P::kKeys || in.size() == P::kValues;
    in.push_back(is_buffer ? input : in_rows(input, encoder));
  }
  auto& state = primitive.params();
  size_t next = P::kOptional;
  auto optional = [&](bool given) { return given ? &in[next++] : nullptr; };
  auto* sinks = optional(state.has_sinks);
  auto* position = optional(state.norm_rope.has_value());
  auto* weight_q = optional(position && state.norm_rope->has_weight);
  auto* weight_k = optional(position && state.norm_rope->has_weight);
  auto* freqs = optional(position && state.norm_rope->has_freqs);
  int B = out.shape(0), H = out.shape(1), D = out.shape(3);
  array partials({B, H, kShares, D}, float32, nullptr, {}), sums({B, H, kShares, 2}, float32, nullptr, {});
  if (state.many_keys) {
    for (auto* a : {&partials, &sums}) {
      allocate(*a, encoder);
      encoder.add_temporary(*a);
    }
  }
  dispatch_type(out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_head_dim(D, [&](auto dim) {
      constexpr int kDim = dim;
      Step<T> step = {
          gpu_ptr<T>(in[P::kQ]),
          gpu_ptr<T>(in[P::kK]),
          gpu_ptr<T>(in[P::kV]),
          gpu_ptr<T>(keys),
          gpu_ptr<T>(values),
          gpu_ptr<int>(in[P::kLengths]),
          sinks ? gpu_ptr<T>(*sinks) : nullptr,
          gpu_ptr<T>(out),
          state.many_keys ? gpu_ptr<float>(partials) : nullptr,
          state.many_keys ? gpu_ptr<float2>(sums) : nullptr,
          keys.shape(2),
          state.ring ? state.ring->keep : 0,
          state.ring ? state.ring->shift : 0,
          state.ring.has_value(),
          H / keys.shape(1),
          state.scale,
          position ? gpu_ptr<int>(*position) : nullptr,
          {},
          {}};
      if (position) {
        step.norm_rope_q = norm_rope_of<T>(*state.norm_rope, weight_q, freqs, D);
        step.norm_rope_k = norm_rope_of<T>(*state.norm_rope, weight_k, freqs, D);
      }
      for (size_t i = 0; i < in.size(); i++) {
        encoder.set_input_array(in[i]);
      }
      if (state.many_keys) {
        launch(encoder, many_keys<T, kDim>, dim3(H, kShares, B), 256, 0, {}, {keys, values, partials, sums}, step);
        launch(encoder, join_shares<T, kDim>, dim3(H, B), 1024, 0, {partials, sums}, {out}, step);
      } else {
        launch(encoder, few_keys<T, kDim>, dim3(H, B), 1024, 0, {}, {keys, values, out}, step);
      }
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
