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
#include "cuda/lanes.cuh"
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
  constexpr int kReadsOfQ = kLatent / kReads<T>;
  for (int i = threadIdx.x; i < kHeads * kReadsOfQ; i += kScoreWarps * 32) {
    int head = i / kReadsOfQ, at = i % kReadsOfQ * kReads<T>;
    auto* of_head = p.q + (int64_t{row} * p.heads + min(first_head + head, p.heads - 1)) * kLatent;
    auto read = *reinterpret_cast<const Values<T, kReads<T>>*>(of_head + at);
#pragma unroll
    for (int j = 0; j < kReads<T>; j++) {
      q[head][at + j] = static_cast<float>(times(scale, read.v[j]));
    }
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
    float sum = sums_over_warp<8>(sums, lane);
    float of_rope = __shfl_xor_sync(0xffffffff, sum, 16);
    int head = first_head + lane / 4;
    if (lane < 16 && lane % 4 == 0 && head < p.heads) {
      p.scores[(int64_t{row} * p.heads + head) * p.score_stride + key] = plus(to<T>(sum), to<T>(of_rope));
    }
    part = next;
  }
}

// What a thread of stock's reads at once of a row of scores.
template <typename T>
struct Scores {
  float values[kReads<T>];

  __device__ void read(const T* scores, int first, int length) {
    if (first + kReads<T> <= length) {
      auto read = *reinterpret_cast<const Values<T, kReads<T>>*>(scores + first);
#pragma unroll
      for (int i = 0; i < kReads<T>; i++) {
        values[i] = static_cast<float>(read.v[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kReads<T>; i++) {
        values[i] = first + i < length ? static_cast<float>(scores[first + i]) : -INFINITY;
      }
    }
  }

  // The largest of these and `most`, and their sum behind that of others, which were taken with `most`.
  __device__ void add_to(float& most, float& sum) const {
    float before = most;
#pragma unroll
    for (int i = 0; i < kReads<T>; i++) {
      most = most < values[i] ? values[i] : most;
    }
    sum = __fmaf_rn(sum, __expf(before - most), __expf(values[0] - most));
#pragma unroll
    for (int i = 1; i < kReads<T>; i++) {
      sum = __fadd_rn(sum, __expf(values[i] - most));
    }
  }
};

template <typename T>
__device__ float weight(float score, float most, float factor) {
  return static_cast<float>(to<T>(__fmul_rn(__expf(score - most), factor)));
}

// Weights of a chunk of keys: those of a key's heads one after the other, with gaps, so that lanes of eight keys each meet few
// banks twice.
inline constexpr int kWeights = kChunk * kHeads + kChunk / 8 * kHeads;

__device__ inline int place_of(int key) {
  return (key + key / 8) * kHeads;
}

// Weights of as many keys as a warp of stock's has: a warp for each head.
template <typename T>
__device__ void weights_of_few(const T* scores, int length, int head, float* weights, int lane) {
  Scores<T> of_lane;
  of_lane.read(scores, lane * kReads<T>, length);
  float most = -FLT_MAX, sum = 0;
  of_lane.add_to(most, sum);
  float before = most;
  most = max_over_warp(most);
  sum = sum_over_warp(__fmul_rn(sum, __expf(before - most)));
  float factor = __fdiv_rn(1.0f, sum);
#pragma unroll
  for (int i = 0; i < kReads<T>; i++) {
    weights[place_of(lane * kReads<T> + i) + head] = weight<T>(of_lane.values[i], most, factor);
  }
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
  float most[kHeads], sums[kHeads];
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    most[head] = -FLT_MAX;
    sums[head] = 0;
  }
  for (int first = threadIdx.x * kReads<T>; first < length; first += 1024 * kReads<T>) {
#pragma unroll
    for (int head = 0; head < kHeads; head++) {
      Scores<T> of_head;
      of_head.read(scores[head], first, length);
      of_head.add_to(most[head], sums[head]);
    }
  }
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    float before = most[head];
    most[head] = max_over_warp(most[head]);
    sums[head] = __fmul_rn(sums[head], __expf(before - most[head]));
    if (lane == 0) {
      most_of_warps[head][warp] = most[head];
    }
  }
  float of_warp = sums_over_warp<4>(sums, lane);
  __syncthreads();
  float scaled = 0;
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    float before = most[head];
    most[head] = max_over_warp(most_of_warps[head][lane]);
    scaled = lane / 8 == head ? __fmul_rn(of_warp, __expf(before - most[head])) : scaled;
  }
  if (lane % 8 == 0) {
    sums_of_warps[lane / 8][warp] = scaled;
  }
  __syncthreads();
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    sums[head] = sums_of_warps[head][lane];
  }
  float factor = __fdiv_rn(1.0f, sums_over_warp<4>(sums, lane));
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    heads[head] = {most[head], __shfl_sync(0xffffffff, factor, head * 8)};
  }
}

template <typename T>
__global__ void __launch_bounds__(1024) latent_result(const __grid_constant__ LatentStep<T> p) {
  constexpr int kOutputs = kHeads * kColumns;
  __shared__ __align__(16) float weights[kWeights];
  __shared__ float partials[32][kOutputs + 1];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.z;
  int first_head = blockIdx.y * kHeads, column = blockIdx.x * kColumns;
  int length = min(max(p.lengths[row], 1), p.capacity);
  const T* values = p.latents + int64_t{row} * p.capacity * kLatent + column + lane;
  // of how many keys one after the other a lane of stock's has, as a power of two
  int run = length % 128 == 0 ? 2 : length % 64 == 0 ? 1 : 0;
  auto first_key_of = [&](int i) { return i >> run << (5 + run); };
  auto key_of = [&](int i) { return first_key_of(i) + (warp << run) + (i & ((1 << run) - 1)); };

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
  bool are_few = length <= 32 * kReads<T>;
  SoftmaxOfHead softmax[kHeads];
  if (!are_few) {
    softmax_of_heads(scores, length, softmax);
  } else if (warp < kHeads) {
    weights_of_few(p.scores + (int64_t{row} * p.heads + min(first_head + warp, p.heads - 1)) * p.score_stride, length, warp,
                   weights, lane);
  }

  float sums[kHeads] = {};
  for (int chunk = 0; chunk < length; chunk += kChunk) {
    int of_thread = chunk + threadIdx.x;
    if (!are_few && of_thread < length) {
#pragma unroll
      for (int head = 0; head < kHeads; head++) {
        float score = static_cast<float>(scores[head][of_thread]);
        weights[place_of(threadIdx.x) + head] = weight<T>(score, softmax[head].most, softmax[head].factor);
      }
    }
    __syncthreads();
    int end = min(chunk + kChunk, length);
    for (int i = chunk / 32; i < (chunk + kChunk) / 32; i += kAhead) {
      if (first_key_of(i) >= end) {
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
          auto of_key = *reinterpret_cast<const Values<float, kHeads>*>(weights + place_of(key - chunk));
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
  // a warp has four outputs
  float of_outputs[kOutputs / 32];
#pragma unroll
  for (int i = 0; i < kOutputs / 32; i++) {
    of_outputs[i] = partials[lane][warp * (kOutputs / 32) + i];
  }
  float sum = sums_over_warp<4>(of_outputs, lane);
  int output = warp * (kOutputs / 32) + lane / 8;
  int head = first_head + output / kColumns;
  if (lane % 8 == 0 && head < p.heads) {
    p.out[(int64_t{row} * p.heads + head) * kLatent + column + output % kColumns] = to<T>(sum);
  }
}

} // namespace latents

} // namespace zmlx::on_cuda
