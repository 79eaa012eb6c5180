// The kernels of recorded_latent_attention, with the bits of these stock ops (mlx/backend/cuda/gemms/gemv.cu, softmax.cu):
//
//   scores = latents @ (scale * q) + keys @ (scale * q_rope), each product rounded
//   y = transposed(latents) @ softmax(scores, precise)
//
// Every product is of a matrix by a vector, a result a warp there: its lanes take four values of a row in turn where its length is
// a multiple of 128, two where it is one of 64, one otherwise; then the sums of the lanes are added in pairs. For scores
// that is an order of its own for every key. For the result the rows are as long as there are keys, so that a lane has
// the same ones whatever their number, but for multiples of 64 and of 128: so their number is data here. Softmax is one order
// for a block of 1,024 threads, and threads without keys add nothing.
//
// Two launches. Scores: a warp has a key, and four heads. Result: a block has 32 values of a latent, and four heads; its
// warps are stock's lanes.

#pragma once

#include <cfloat>
#include <cmath>

#include "cuda/depend.cuh"
#include "cuda/norm_rope.cuh"

namespace zmlx::on_cuda {

namespace latents {

inline constexpr int kLatent = 512, kRope = 64;
// Heads that a block has.
inline constexpr int kHeads = 4;
inline constexpr int kScoreWarps = 8;
// Values of a latent that a block of the result has.
inline constexpr int kColumns = 32;
// Keys whose weights a block has at a time.
inline constexpr int kChunk = 1024;

template <typename T>
struct LatentStep {
  const T* q; // [B, H, kLatent]
  const T* q_rope; // [B, H, kRope], heads q_stride apart
  const T* latent; // [B, kLatent]
  const T* k_rope; // [B, kRope]
  T* latents; // [B, capacity, kLatent]
  T* keys; // [B, capacity, kRope]
  const int* lengths; // [B]
  T* scores; // [B, H, score_stride]
  T* out; // [B, H, kLatent]
  int heads, capacity, q_stride, score_stride;
  float scale;
  const int* position; // or null: q_rope and k_rope are turned
  NormRope<T> rope;
};

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Values {
  T v[kSize];
};

// A key's part of a lane.
template <typename T>
struct KeyPart {
  static constexpr int kTurns = kLatent / 128;
  Values<T, 4> latent[kTurns];
  Values<T, 2> rope;

  __device__ void read(const T* latents, const T* keys, int lane) {
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
      latent[turn] = reinterpret_cast<const Values<T, 4>*>(latents)[turn * 32 + lane];
    }
    rope = reinterpret_cast<const Values<T, 2>*>(keys)[lane];
  }
};

// Adds the lanes' eight sums, as sum_over_warp adds each: afterwards a lane has the one of the number lane / 4.
__device__ inline float eight_sums_over_warp(const float (&sums)[8], int lane) {
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    bool high = lane & 16;
    float kept = high ? sums[i + 4] : sums[i], sent = high ? sums[i] : sums[i + 4];
    four[i] = __fadd_rn(kept, __shfl_xor_sync(0xffffffff, sent, 16));
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    bool high = lane & 8;
    float kept = high ? four[i + 2] : four[i], sent = high ? four[i] : four[i + 2];
    two[i] = __fadd_rn(kept, __shfl_xor_sync(0xffffffff, sent, 8));
  }
  bool high = lane & 4;
  float sum = __fadd_rn(high ? two[1] : two[0], __shfl_xor_sync(0xffffffff, high ? two[0] : two[1], 4));
  sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffff, sum, 2));
  return __fadd_rn(sum, __shfl_xor_sync(0xffffffff, sum, 1));
}

template <typename T>
__global__ void __launch_bounds__(kScoreWarps * 32) latent_scores(const __grid_constant__ LatentStep<T> p) {
  __shared__ __align__(16) float q[kHeads][kLatent];
  __shared__ __align__(16) float q_rope[kHeads][kRope];
  __shared__ __align__(16) T turned[kHeads + 1][kRope];
  __shared__ __align__(16) T turning[kHeads + 1][kRope];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.z;
  int first_head = blockIdx.y * kHeads;
  int length = min(max(p.lengths[row], 1), p.capacity);
  T* latents = p.latents + int64_t{row} * p.capacity * kLatent;
  T* keys = p.keys + int64_t{row} * p.capacity * kRope;
  int stride = gridDim.x * kScoreWarps;
  int key = blockIdx.x * kScoreWarps + warp;

  // keys of tokens before this one are there since the step before
  KeyPart<T> part;
  if (key < length - 1) {
    part.read(latents + int64_t{key} * kLatent, keys + int64_t{key} * kRope, lane);
  }
  Turn turn;
  if (p.position && warp <= kHeads) {
    turn = p.rope.turn(*p.position, lane);
  }
  wait_for_inputs();
  let_next_begin();

  const T scale = to<T>(p.scale);
  for (int i = threadIdx.x; i < kHeads * kLatent; i += kScoreWarps * 32) {
    int head = first_head + i / kLatent;
    T value = head < p.heads ? p.q[(int64_t{row} * p.heads + head) * kLatent + i % kLatent] : to<T>(0.0f);
    q[i / kLatent][i % kLatent] = static_cast<float>(times(scale, value));
  }
  if (warp <= kHeads) {
    int head = min(first_head + warp, p.heads - 1);
    auto* from = warp == kHeads ? p.k_rope + int64_t{row} * kRope
                                : p.q_rope + (int64_t{row} * p.heads + head) * p.q_stride;
    if (p.position) {
      p.rope(from, turning[warp], turned[warp], turn, lane);
    } else {
      reinterpret_cast<Values<T, 2>*>(turned[warp])[lane] = reinterpret_cast<const Values<T, 2>*>(from)[lane];
    }
    __syncwarp();
    if (warp < kHeads) {
      for (int i = lane; i < kRope; i += 32) {
        q_rope[warp][i] = static_cast<float>(times(turned[warp][i], scale));
      }
    }
  }
  __syncthreads();

  for (; key < length; key += stride) {
    if (key == length - 1) {
      part.read(p.latent + int64_t{row} * kLatent, turned[kHeads], lane);
      if (blockIdx.y == 0) {
#pragma unroll
        for (int turn = 0; turn < KeyPart<T>::kTurns; turn++) {
          reinterpret_cast<Values<T, 4>*>(latents + int64_t{key} * kLatent)[turn * 32 + lane] = part.latent[turn];
        }
        reinterpret_cast<Values<T, 2>*>(keys + int64_t{key} * kRope)[lane] = part.rope;
      }
    }
    KeyPart<T> next;
    if (key + stride < length - 1) {
      int64_t at = key + stride;
      next.read(latents + at * kLatent, keys + at * kRope, lane);
    }
    // four heads by latents, and four by rotated keys
    float sums[2 * kHeads];
#pragma unroll
    for (int head = 0; head < kHeads; head++) {
      float sum = 0;
#pragma unroll
      for (int turn = 0; turn < KeyPart<T>::kTurns; turn++) {
        auto of_q = reinterpret_cast<const Values<float, 4>*>(q[head])[turn * 32 + lane];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          sum = __fmaf_rn(static_cast<float>(part.latent[turn].v[i]), of_q.v[i], sum);
        }
      }
      sums[head] = sum;
      auto of_q = reinterpret_cast<const Values<float, 2>*>(q_rope[head])[lane];
      sum = __fmaf_rn(static_cast<float>(part.rope.v[0]), of_q.v[0], 0.0f);
      sums[kHeads + head] = __fmaf_rn(static_cast<float>(part.rope.v[1]), of_q.v[1], sum);
    }
    float sum = eight_sums_over_warp(sums, lane);
    float of_rope = __shfl_xor_sync(0xffffffff, sum, 16);
    int head = first_head + lane / 4;
    if (lane < 16 && lane % 4 == 0 && head < p.heads) {
      p.scores[(int64_t{row} * p.heads + head) * p.score_stride + key] = plus(to<T>(sum), to<T>(of_rope));
    }
    part = next;
  }
}

__device__ inline float max_over_warp(float v) {
  for (int apart = 16; apart > 0; apart /= 2) {
    float other = __shfl_xor_sync(0xffffffff, v, apart);
    v = v < other ? other : v;
  }
  return v;
}

struct SoftmaxOfHead {
  float most, factor;
};

// The largest score of each head, and what exponentials are multiplied by, by 1,024 threads.
template <typename T>
__device__ void softmax_of_heads(const T* const (&scores)[kHeads], int length, SoftmaxOfHead (&heads)[kHeads]) {
  __shared__ float most_of_warps[kHeads][32];
  __shared__ float sums_of_warps[kHeads][32];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float most[kHeads], sum[kHeads];
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    most[head] = -FLT_MAX;
    sum[head] = 0;
    for (int first = threadIdx.x * kReads<T>; first < length; first += 1024 * kReads<T>) {
      Values<T, kReads<T>> read;
      if (first + kReads<T> <= length) {
        read = *reinterpret_cast<const Values<T, kReads<T>>*>(scores[head] + first);
      } else {
#pragma unroll
        for (int i = 0; i < kReads<T>; i++) {
          read.v[i] = first + i < length ? scores[head][first + i] : to<T>(0.0f);
        }
      }
      float values[kReads<T>];
      float before = most[head];
#pragma unroll
      for (int i = 0; i < kReads<T>; i++) {
        values[i] = first + i < length ? static_cast<float>(read.v[i]) : -INFINITY;
        most[head] = most[head] < values[i] ? values[i] : most[head];
      }
      sum[head] = __fmaf_rn(sum[head], __expf(before - most[head]), __expf(values[0] - most[head]));
#pragma unroll
      for (int i = 1; i < kReads<T>; i++) {
        sum[head] = __fadd_rn(sum[head], __expf(values[i] - most[head]));
      }
    }
    float before = most[head];
    most[head] = max_over_warp(most[head]);
    sum[head] = sum_over_warp(__fmul_rn(sum[head], __expf(before - most[head])));
    if (lane == 0) {
      most_of_warps[head][warp] = most[head];
    }
  }
  __syncthreads();
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    float before = most[head];
    most[head] = max_over_warp(most_of_warps[head][lane]);
    sum[head] = __fmul_rn(sum[head], __expf(before - most[head]));
    if (lane == 0) {
      sums_of_warps[head][warp] = sum[head];
    }
  }
  __syncthreads();
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    heads[head] = {most[head], __fdiv_rn(1.0f, sum_over_warp(sums_of_warps[head][lane]))};
  }
}

template <typename T>
__global__ void __launch_bounds__(1024) latent_result(const __grid_constant__ LatentStep<T> p) {
  constexpr int kOutputs = kHeads * kColumns;
  __shared__ __align__(16) float weights[kChunk][kHeads];
  __shared__ float partials[32][kOutputs + 1];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.z;
  int first_head = blockIdx.y * kHeads, column = blockIdx.x * kColumns;
  int length = min(max(p.lengths[row], 1), p.capacity);
  const T* values = p.latents + int64_t{row} * p.capacity * kLatent + column + lane;
  // of how many keys one after the other a lane of stock's has
  int run = length % 128 == 0 ? 4 : length % 64 == 0 ? 2 : 1;
  auto key_of = [&](int i) { return i / run * 32 * run + warp * run + i % run; };

  constexpr int kAhead = 8;
  T ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; i++) {
    int key = key_of(i);
    ahead[i] = key < length - 1 ? values[int64_t{key} * kLatent] : to<T>(0.0f);
  }
  wait_for_inputs();
  let_next_begin();

  const T* scores[kHeads];
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    int of_head = min(first_head + head, p.heads - 1);
    scores[head] = p.scores + (int64_t{row} * p.heads + of_head) * p.score_stride;
  }
  SoftmaxOfHead softmax[kHeads];
  softmax_of_heads(scores, length, softmax);

  float sums[kHeads] = {};
  for (int chunk = 0; chunk < length; chunk += kChunk) {
    int of_thread = chunk + threadIdx.x;
    if (of_thread < length) {
#pragma unroll
      for (int head = 0; head < kHeads; head++) {
        float power = __expf(static_cast<float>(scores[head][of_thread]) - softmax[head].most);
        weights[threadIdx.x][head] = static_cast<float>(to<T>(__fmul_rn(power, softmax[head].factor)));
      }
    }
    __syncthreads();
    int end = min(chunk + kChunk, length);
    for (int i = chunk / 32; i < (chunk + kChunk) / 32; i += kAhead) {
      if (i / run * 32 * run >= end) {
        break;
      }
      T these[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; a++) {
        int key = key_of(i + a);
        bool is_held = i == 0 && key != length - 1;
        these[a] = is_held ? ahead[a] : key < end ? values[int64_t{key} * kLatent] : to<T>(0.0f);
      }
#pragma unroll
      for (int a = 0; a < kAhead; a++) {
        int key = key_of(i + a);
        if (key < end) {
          auto of_key = *reinterpret_cast<const Values<float, kHeads>*>(weights[key - chunk]);
#pragma unroll
          for (int head = 0; head < kHeads; head++) {
            sums[head] = __fmaf_rn(static_cast<float>(these[a]), of_key.v[head], sums[head]);
          }
        }
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    partials[warp][head * kColumns + lane] = sums[head];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kOutputs / 32; i++) {
    int output = warp * (kOutputs / 32) + i;
    float sum = sum_over_warp(partials[lane][output]);
    int head = first_head + output / kColumns;
    if (lane == 0 && head < p.heads) {
      p.out[(int64_t{row} * p.heads + head) * kLatent + column + output % kColumns] = to<T>(sum);
    }
  }
}

} // namespace latents

} // namespace zmlx::on_cuda
