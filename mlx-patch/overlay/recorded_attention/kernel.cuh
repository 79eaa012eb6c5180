// The kernels of recorded_attention, with the bits of stock's vector kernels (`kernel_sdpav_1pass`, and for more than 1,024
// keys `kernel_sdpav_2pass_1` and `_2`, in mlx/backend/cuda/scaled_dot_product_attention.cu).
//
// Stock's warps take every 32nd key of a head, or every 256th, one after the other: a chain. What decides the bits is that
// order, in which each of its keys scales the sums before it, and the order in which chains are added. Neither depends on how
// many keys there are, so their number is data here.
//
// A warp has one chain of several heads that share keys, so that each key is read and converted once for all of them, and takes
// several keys at a time, by cp.async into memory of its own. That is 32 scores at once: the lanes add them in 31 shuffles, where
// each alone takes five, and then have one each. Maxima may be taken in any order, so that every lane can tell by itself what
// its score adds, and by what it scales what was before it. What is left to be done key after key are the sums themselves.
//
// Few keys: the 32 chains of two heads are the warps of a cluster, which hand what they have to the block that adds it.
// Many keys: a block has eight chains, and a second launch adds what the blocks have. The token's own key and value come
// from where they were computed, and the block whose chain has them writes them down.

#pragma once

#include <cooperative_groups.h>

#include <cfloat>
#include <cmath>
#include <utility>

#include "cuda/depend.cuh"
#include "cuda/lanes.cuh"
#include "cuda/mma.cuh"
#include "cuda/norm_rope.cuh"

namespace zmlx::on_cuda::attention {

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
  int heads, kv_heads, capacity;
  int keep, shift; // of a ring
  bool is_ring;
  float scale;
  const int* position; // or null: q and k are as they should be
  NormRope<T> norm_rope_q, norm_rope_k;
};

// How a kernel divides its work.
template <int heads, int warps, int chains, int stages>
struct Plan {
  // Heads and keys of a warp at a time.
  static constexpr int kHeads = heads, kKeys = 32 / heads;
  // Warps of a block, a chain each, of so many of a head.
  static constexpr int kWarps = warps, kChains = chains;
  // How often so many keys are on their way or in use.
  static constexpr int kStages = stages;
  static constexpr int kBlocks = chains / warps;

  // Blocks for the heads that share keys, but for those for its chains.
  static constexpr int sets(int group) {
    return (group + heads - 1) / heads;
  }

  template <typename T, int kDim>
  static constexpr int kStageBytes = 2 * kKeys * kDim * static_cast<int>(sizeof(T));

  template <typename T, int kDim>
  static constexpr size_t kSharedBytes = size_t{warps * stages} * kStageBytes<T, kDim>;
};

template <int kDim>
using FewKeys = Plan<2, 4, 32, kDim <= 64 ? 1 : 2>;
// Of up to `heads` that share keys.
template <int heads>
using ManyKeys = Plan<heads, 8, 256, 2>;

// Blocks of many keys that share a head.
inline constexpr int kShares = ManyKeys<8>::kBlocks;

template <typename T, int kPart>
struct alignas(sizeof(T) * (kPart % 2 == 0 ? kPart : 1)) Part {
  T values[kPart];
};

// Zeros unless `there`.
__device__ inline void copy_16_bytes_if(bool there, char* shared, const char* global) {
  uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(there ? 16 : 0) : "memory");
}

// What a block works on.
template <typename T, typename P>
struct Heads {
  int row, kv_head, first, count; // heads of q from `first` on
  int length, newest; // keys, and which of them is the token's own
  bool has_newest, writes; // the block, one of those that have

  __device__ Heads(const Step<T>& p, int block) {
    int group = p.heads / p.kv_heads, sets = P::sets(group), set = blockIdx.y % sets;
    row = blockIdx.z;
    kv_head = blockIdx.y / sets;
    first = kv_head * group + set * P::kHeads;
    count = min(P::kHeads, group - set * P::kHeads);
    int seen = max(p.lengths[row], 1);
    length = min(seen, p.capacity);
    newest = length - 1;
    if (p.is_ring) {
      int slot = seen - 1 + p.shift;
      slot = slot < p.capacity ? slot : p.keep + (slot - p.capacity) % (p.capacity - p.keep);
      newest = min(max(slot, 0), p.capacity - 1);
    }
    has_newest = newest % P::kChains / P::kWarps == block;
    writes = has_newest && set == 0;
  }
};

// What a warp has of its heads: sums over a chain, which are those of `sum` and `most` in the lanes of a head.
template <int kHeads, int kPart>
struct Softmax {
  float o[kHeads][kPart] = {};
  float most = -FLT_MAX;
  float sum = 0;
};

// The token's own q of every head, its key and its value, as a warp reads them.
template <typename T, int kDim, typename P>
struct Token {
  T rows[P::kHeads + 2][kDim];
  T normed[P::kHeads + 1][kDim];

  // By all warps, a row each. The key and the value where they are of this block.
  __device__ void stage(const Step<T>& p, const Heads<T, P>& heads, const Turn& turn, int warp, int lane) {
    constexpr int kKey = P::kHeads, kValue = kKey + 1;
    using Vector = Part<T, kDim / 32>;
#pragma unroll
    for (int n = 0; n < (kValue + P::kWarps) / P::kWarps; n++) {
      int i = n * P::kWarps + warp;
      bool is_q = i < heads.count, is_k = i == kKey && heads.has_newest, is_v = i == kValue && heads.has_newest;
      const T* from = is_q ? p.q + (int64_t{heads.row} * p.heads + heads.first + i) * kDim
                           : (is_k ? p.k : p.v) + (int64_t{heads.row} * p.kv_heads + heads.kv_head) * kDim;
      if (p.position && (is_q || is_k)) {
        (is_q ? p.norm_rope_q : p.norm_rope_k)(from, normed[i], rows[i], turn, lane);
      } else if (is_q || is_k || is_v) {
        reinterpret_cast<Vector*>(rows[i])[lane] = reinterpret_cast<const Vector*>(from)[lane];
      } else if (i < P::kHeads) {
        reinterpret_cast<Vector*>(rows[i])[lane] = Vector{};
      }
    }
    __syncthreads();
  }
};

// The score of each lane, of head lane / kKeys and key lane % kKeys.
template <typename P, typename T, int kPart>
__device__ float score_of_lane(const T* keys, const float (&q)[P::kHeads][kPart], int lane) {
  float scores[32];
#pragma unroll
  for (int key = 0; key < P::kKeys; key++) {
    auto of_lane = reinterpret_cast<const Part<T, kPart>*>(keys)[key * 32 + lane];
#pragma unroll
    for (int head = 0; head < P::kHeads; head++) {
      float score = 0;
#pragma unroll
      for (int j = 0; j < kPart; j++) {
        score = __fmaf_rn(q[head][j], static_cast<float>(of_lane.values[j]), score);
      }
      scores[head * P::kKeys + key] = score;
    }
  }
  return sums_over_warp<32>(scores, lane);
}

// What the keys of a turn add to sums, in the lanes of their scores.
struct Weights {
  float powers[32]; // of 2, of each score
  float factors[32]; // of what was before
};

// Adds values of a turn, one key after the other.
template <typename P, typename T, int kPart>
__device__ void add_values(const T* values, const Weights& weights, Softmax<P::kHeads, kPart>& s, int lane) {
  using Four = Part<float, 4>;
#pragma unroll
  for (int key = 0; key < P::kKeys; key += 4) {
    int at = (lane / P::kKeys * P::kKeys + key) / 4;
    auto power = reinterpret_cast<const Four*>(weights.powers)[at];
    auto factor = reinterpret_cast<const Four*>(weights.factors)[at];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      s.sum = __fmaf_rn(factor.values[i], s.sum, power.values[i]);
    }
  }
#pragma unroll
  for (int key = 0; key < P::kKeys; key += 4) {
    float v[4][kPart];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      auto of_lane = reinterpret_cast<const Part<T, kPart>*>(values)[(key + i) * 32 + lane];
#pragma unroll
      for (int j = 0; j < kPart; j++) {
        v[i][j] = static_cast<float>(of_lane.values[j]);
      }
    }
#pragma unroll
    for (int head = 0; head < P::kHeads; head++) {
      auto power = reinterpret_cast<const Four*>(weights.powers)[(head * P::kKeys + key) / 4];
      auto factor = reinterpret_cast<const Four*>(weights.factors)[(head * P::kKeys + key) / 4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < kPart; j++) {
          // contracted as the compiler contracts stock's
          s.o[head][j] = __fmaf_rn(factor.values[i], s.o[head][j], __fmul_rn(power.values[i], v[i][j]));
        }
      }
    }
  }
}

// The chain of a warp of block `block`.
template <typename P, int kDim, typename T>
__device__ void attend(
    const Step<T>& p,
    const Heads<T, P>& heads,
    float scale_log2,
    int block,
    char* stages,
    Softmax<P::kHeads, kDim / 32>& s) {
  constexpr int kPart = kDim / 32, kHeads = P::kHeads, kKeys = P::kKeys, kStages = P::kStages;
  constexpr int kRow = kDim * sizeof(T), kPieces = kRow / 16, kStage = P::template kStageBytes<T, kDim>;
  using Vector = Part<T, kPart>;
  __shared__ __align__(16) Token<T, kDim, P> token;
  __shared__ __align__(16) Weights weights_of_warps[P::kWarps];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int chain = block * P::kWarps + warp;
  int64_t of_buffer = (int64_t{heads.row} * p.kv_heads + heads.kv_head) * p.capacity * kDim;
  T* keys = p.keys + of_buffer;
  T* values = p.values + of_buffer;
  stages += warp * kStages * kStage;
  auto& weights = weights_of_warps[warp];

  // keys of tokens before this one are there since the step before
  auto ask = [&](int turn) {
    char* to = stages + turn % kStages * kStage;
#pragma unroll
    for (int n = 0; n < (kKeys * kPieces + 31) / 32; n++) {
      int i = n * 32 + lane;
      if (kKeys * kPieces % 32 == 0 || i < kKeys * kPieces) {
        int key = chain + (turn * kKeys + i / kPieces) * P::kChains;
        bool there = key < heads.length && key != heads.newest;
        int64_t at = there ? int64_t{key} * kRow + i % kPieces * 16 : 0;
        copy_16_bytes_if(there, to + i * 16, reinterpret_cast<const char*>(keys) + at);
        copy_16_bytes_if(there, to + (kKeys * kPieces + i) * 16, reinterpret_cast<const char*>(values) + at);
      }
    }
  };
  int in_chain = heads.length > chain ? (heads.length - chain + P::kChains - 1) / P::kChains : 0;
  int turns = (in_chain + kKeys - 1) / kKeys;
#pragma unroll
  for (int turn = 0; turn < kStages; turn++) {
    if (turn < turns) {
      ask(turn);
    }
    close_group_of_copies();
  }
  // where the token stands was known when the step began
  Turn turn_by;
  if (p.position) {
    turn_by = p.norm_rope_q.turn(*p.position, lane);
  }
  wait_for_inputs();
  let_next_begin();

  token.stage(p, heads, turn_by, warp, lane);
  // lane's part of its key, or its value
  auto own = [&](int which) { return reinterpret_cast<const Vector*>(token.rows[kHeads + which])[lane]; };
  if (heads.writes && warp < 2) {
    T* buffer = warp == 0 ? keys : values;
    reinterpret_cast<Vector*>(buffer + int64_t{heads.newest} * kDim)[lane] = own(warp);
  }
  float q[kHeads][kPart];
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    auto of_lane = reinterpret_cast<const Vector*>(token.rows[head])[lane];
#pragma unroll
    for (int j = 0; j < kPart; j++) {
      q[head][j] = scale_log2 * static_cast<float>(of_lane.values[j]);
    }
  }
  int of_head = lane / kKeys, of_key = lane % kKeys;
  if (p.sinks && chain == 0 && of_head < heads.count) {
    s.most = M_LOG2E * static_cast<float>(p.sinks[heads.first + of_head]);
    s.sum = 1;
  }
  bool is_own = heads.newest % P::kChains == chain;
  int own_in_chain = heads.newest / P::kChains;

  for (int turn = 0; turn < turns; turn++) {
    wait_for_copies(kStages - 1);
    __syncwarp();
    auto* staged_keys = reinterpret_cast<T*>(stages + turn % kStages * kStage);
    auto* staged_values = staged_keys + kKeys * kDim;
    if (is_own && own_in_chain / kKeys == turn) {
      int at = own_in_chain % kKeys * 32 + lane;
      reinterpret_cast<Vector*>(staged_keys)[at] = own(0);
      reinterpret_cast<Vector*>(staged_values)[at] = own(1);
      __syncwarp();
    }
    float score = score_of_lane<P>(staged_keys, q, lane);
    // the largest up to this key, by which what was before it is scaled
    bool counts = chain + (turn * kKeys + of_key) * P::kChains < heads.length;
    float most = counts ? score : -INFINITY;
#pragma unroll
    for (int apart = 1; apart < kKeys; apart *= 2) {
      most = fmaxf(most, __shfl_up_sync(0xffffffff, most, apart, kKeys));
    }
    most = fmaxf(most, s.most);
    float before = __shfl_up_sync(0xffffffff, most, 1, kKeys);
    before = of_key == 0 ? s.most : before;
    // what is behind the last key adds -0, which changes nothing
    weights.powers[lane] = counts ? exp2f(score - most) : -0.0f;
    weights.factors[lane] = counts ? exp2f(before - most) : 1.0f;
    s.most = __shfl_sync(0xffffffff, most, kKeys - 1, kKeys);
    __syncwarp();
    add_values<P>(staged_values, weights, s, lane);
    __syncwarp();
    if (turn + kStages < turns) {
      ask(turn + kStages);
    }
    close_group_of_copies();
  }
}

// Of the 32 parts of a head, one a lane, with its sum and largest score: by what the lane's is multiplied, and what their sum is.
struct Shares {
  float of_lane, of_all;

  __device__ Shares(float sum, float most) {
    of_lane = exp2f(most - max_over_warp(most));
    sum = sum_over_warp(__fmul_rn(sum, of_lane));
    of_all = sum == 0 ? 0 : __frcp_rn(sum);
  }
};

// Adds `count` values of each lane, and writes each sum.
template <int kCount, typename T>
__device__ void join(const Shares& shares, const float (&values)[kCount], T* y, int lane) {
  constexpr int kSums = kCount <= 4 ? 4 : kCount <= 8 ? 8 : 16, kLanes = 32 / kSums;
  static_assert(kCount <= kSums);
  float sums[kSums] = {};
#pragma unroll
  for (int i = 0; i < kCount; i++) {
    sums[i] = __fmul_rn(values[i], shares.of_lane);
  }
  float sum = __fmul_rn(sums_over_warp<kSums>(sums, lane), shares.of_all);
  if (lane % kLanes == 0 && lane / kLanes < kCount) {
    y[lane / kLanes] = to<T>(sum);
  }
}

// Architectures without clusters are refused, but may be compiled for.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define ZMLX_HEADS_CLUSTER(P) __cluster_dims__(P::kBlocks, 1, 1)
#else
#define ZMLX_HEADS_CLUSTER(P)
#endif

// A cluster for a set of heads; every block of it adds a part of the columns of one.
template <typename T, int kDim, typename P = FewKeys<kDim>>
__global__ ZMLX_HEADS_CLUSTER(P) __launch_bounds__(P::kWarps * 32) void few_keys(const __grid_constant__ Step<T> p) {
#if __CUDA_ARCH__ >= 900
  constexpr int kPart = kDim / 32, kHeads = P::kHeads, kBlocksOfHead = P::kBlocks / kHeads;
  constexpr int kColumns = kDim / kBlocksOfHead, kLanes = 32 / kBlocksOfHead, kOfWarp = kColumns / P::kWarps;
  extern __shared__ __align__(16) char stages[];
  __shared__ __align__(16) float outputs[32][kColumns + 4];
  __shared__ float2 of_chains[32];
  auto cluster = cooperative_groups::this_cluster();
  auto began = cluster.barrier_arrive();
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, block = blockIdx.x;
  Heads<T, P> heads(p, block);
  Softmax<kHeads, kPart> s;
  attend<P, kDim>(p, heads, p.scale * M_LOG2E, block, stages, s);

  cluster.barrier_wait(std::move(began));
  int chain = block * P::kWarps + warp;
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    float* to = cluster.map_shared_rank(&outputs[chain][kPart * (lane % kLanes)], head * kBlocksOfHead + lane / kLanes);
    *reinterpret_cast<Part<float, kPart>*>(to) = *reinterpret_cast<Part<float, kPart>*>(s.o[head]);
  }
  int of_head = lane / P::kKeys, to = lane % P::kKeys;
  if (to < kBlocksOfHead) {
    *cluster.map_shared_rank(&of_chains[chain], of_head * kBlocksOfHead + to) = {s.sum, s.most};
  }
  cluster.sync();

  int head = block / kBlocksOfHead;
  if (head < heads.count) {
    auto [sum, most] = of_chains[lane];
    float values[kOfWarp];
#pragma unroll
    for (int i = 0; i < kOfWarp; i++) {
      values[i] = outputs[lane][warp * kOfWarp + i];
    }
    T* y = p.out + (int64_t{heads.row} * p.heads + heads.first + head) * kDim;
    join(Shares(sum, most), values, y + block % kBlocksOfHead * kColumns + warp * kOfWarp, lane);
  }
#endif
}

#undef ZMLX_HEADS_CLUSTER

// A block for eight chains of a set of heads.
template <typename T, int kDim, typename P>
__global__ void __launch_bounds__(P::kWarps * 32) many_keys(const __grid_constant__ Step<T> p) {
  constexpr int kPart = kDim / 32, kHeads = P::kHeads, kWarps = P::kWarps;
  static_assert(kWarps == 8 && P::template kSharedBytes<T, kDim> >= sizeof(float) * kWarps * kHeads * kDim);
  extern __shared__ __align__(16) char stages[];
  __shared__ float2 of_warps[kHeads][kWarps];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, share = blockIdx.x;
  Heads<T, P> heads(p, share);
  Softmax<kHeads, kPart> s;
  attend<P, kDim>(p, heads, p.scale * 1.44269504089f, share, stages, s);

  constexpr int kLanes = P::kKeys, kOfLane = kWarps / kLanes; // of a head
  int of_head = lane / kLanes;
  if (lane % kLanes == 0) {
    of_warps[of_head][warp] = {s.sum, s.most};
  }
  __syncthreads();
  // what eight warps have of a head, one or two a lane, added as a whole warp of stock's adds them and 24 zeros
  float2 parts[kOfLane];
  float most = -1e9f;
#pragma unroll
  for (int i = 0; i < kOfLane; i++) {
    parts[i] = of_warps[of_head][i * kLanes + lane % kLanes];
    most = fmaxf(most, parts[i].y);
  }
#pragma unroll
  for (int apart = kLanes / 2; apart > 0; apart /= 2) {
    most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, apart));
  }
  int64_t first_head = int64_t{heads.row} * p.heads + heads.first;
  if (warp == 0) {
    float sum = __fmul_rn(parts[0].x, exp2f(parts[0].y - most));
    if constexpr (kOfLane == 2) {
      sum = __fadd_rn(sum, __fmul_rn(parts[1].x, exp2f(parts[1].y - most)));
    }
#pragma unroll
    for (int apart = kLanes / 2; apart > 0; apart /= 2) {
      sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffff, sum, apart));
    }
    if (lane % kLanes == 0 && of_head < heads.count) {
      p.sums[(first_head + of_head) * kShares + share] = {sum, most};
    }
  }
  auto* outputs = reinterpret_cast<float*>(stages); // [kWarps, kHeads, kDim]
  float of_warp = exp2f(s.most - most);
#pragma unroll
  for (int head = 0; head < kHeads; head++) {
    float factor = __shfl_sync(0xffffffff, of_warp, head * kLanes);
    Part<float, kPart> scaled;
#pragma unroll
    for (int j = 0; j < kPart; j++) {
      scaled.values[j] = __fmul_rn(s.o[head][j], factor);
    }
    reinterpret_cast<Part<float, kPart>*>(outputs + (warp * kHeads + head) * kDim)[lane] = scaled;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads.count * kDim; i += kWarps * 32) {
    float total = outputs[i];
#pragma unroll
    for (int other = 1; other < kWarps; other++) {
      total = __fadd_rn(total, outputs[other * kHeads * kDim + i]);
    }
    p.partials[((first_head + i / kDim) * kShares + share) * kDim + i % kDim] = total;
  }
}

// 32 columns of a head in a block, four in a warp, whose lanes are the shares.
template <typename T, int kDim>
__global__ void __launch_bounds__(256) join_shares(const __grid_constant__ Step<T> p) {
  wait_for_inputs();
  let_next_begin();
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + warp * 4;
  int64_t head = int64_t{blockIdx.z} * p.heads + blockIdx.y;
  auto [sum, most] = p.sums[head * kShares + lane];
  auto part = *reinterpret_cast<const Part<float, 4>*>(p.partials + (head * kShares + lane) * kDim + column);
  join(Shares(sum, most), part.values, p.out + head * kDim + column, lane);
}

} // namespace zmlx::on_cuda::attention
