// The kernel of gather_qmm_combine in `fast` precision; fast.cu launches it.
//
// A block has 16 outputs of a token, each of its warps the product of one expert after the other, by the expert's score.

#pragma once

#include "cuda/depend.cuh"
#include "cuda/fast_rows.cuh"
#include "gather_qmm_combine/kernel.cuh"

namespace zmlx::on_cuda::fast {

inline constexpr int kOutputs = 16;

// Most warps of a block.
inline constexpr int kMostExpertWarps = 8;

// Experts that a block has at a time.
template <int kBits, int kGroup>
int experts_at_once(int K, int top_k) {
  return std::clamp<int>(kMostShared / 2 / Layout<kBits, kGroup>::bytes(K), 1, std::min(top_k, kMostExpertWarps));
}

// A warp for each of p.warps experts; kAhead pieces of a warp are on their way.
template <typename T, typename Score, int kBits, int kGroup, int kAhead = 3>
__global__ __launch_bounds__(kMostExpertWarps * 32, 1) void fast_combine(const __grid_constant__ Combine<T, Score> p) {
  extern __shared__ __align__(16) char shared[];
  using L = Layout<kBits, kGroup>;
  using R = Rows<T, kBits, kGroup>;
  __shared__ float sums[kMostExpertWarps][kOutputs];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int blocks = p.N / kOutputs;
  int64_t token = blockIdx.x / blocks;
  int row = blockIdx.x % blocks * kOutputs;
  int pieces = p.K / L::kPiece;
  auto* x = shared + warp * L::bytes(p.K);
  float outputs[2] = {};
  for (int first = 0; first < p.top_k; first += p.warps) {
    bool has = first + warp < p.top_k;
    int64_t product = token * p.top_k + (has ? first + warp : 0);
    int64_t at = int64_t{p.experts[product]} * p.N + row + lane / 4;
    Source<T> source;
#pragma unroll
    for (int i = 0; i < 2; i++, at += 8) {
      source.w[i] = p.down.w + at * (p.K / 8 * kBits);
      source.scales[i] = p.down.scales + at * (p.K / kGroup);
      source.biases[i] = p.down.biases + at * (p.K / kGroup);
    }
    int asked = has ? 0 : pieces;
    typename R::Codes codes[kAhead];
    typename R::Scales scales[kAhead];
    auto ask = [&](int slot) {
      if (asked < pieces) {
        R::ask(codes[slot], scales[slot], source, asked, lane);
        asked++;
      }
    };
#pragma unroll
    for (int slot = 0; slot < kAhead; slot++) {
      ask(slot);
    }
    float score = has ? static_cast<float>(p.scores[product]) : 0.0f;
    if (first == 0) {
      // x was computed from the choice of experts, so that this was complete when the launch began
      wait_for_inputs();
      let_next_begin();
    }
    __syncwarp();
    stage<T, kBits, kGroup, 4>(x, p.x + product * p.K, p.K, lane, 32, [] {});
    __syncwarp();
    R rows(x, p.K, lane);
    for (int piece = has ? 0 : pieces; piece < pieces;) {
#pragma unroll
      for (int slot = 0; slot < kAhead; slot++) {
        if (piece < pieces) {
          rows.add(piece, codes[slot], scales[slot]);
          ask(slot);
          piece++;
        }
      }
    }
    float totals[2];
    rows.take(totals);
    outputs[0] += score * totals[0];
    outputs[1] += score * totals[1];
  }
  if (lane % 4 == 0) {
    sums[warp][lane / 4] = outputs[0];
    sums[warp][lane / 4 + 8] = outputs[1];
  }
  __syncthreads();
  if (threadIdx.x < kOutputs) {
    float total = 0;
    for (int i = 0; i < blockDim.x / 32; i++) {
      total += sums[i][threadIdx.x];
    }
    p.y[token * p.N + row + threadIdx.x] = Pairs<T>::round(total);
  }
}

} // namespace zmlx::on_cuda::fast
