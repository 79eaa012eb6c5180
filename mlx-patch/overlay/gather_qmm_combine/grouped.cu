// A launch that groups the lines, one that multiplies them, and one that adds what the experts of a token have, in their order.

#include "gather_qmm_combine/grouped.h"

#include "cuda/dispatch.h"
#include "cuda/grouped.h"
#include "cuda/tile.h"
#include "gather_qmm_combine/kernel.cuh"

namespace zmlx::on_cuda {

namespace {

template <typename T, typename Score>
struct Sums {
  const T* products; // [tokens, top_k, N]
  const Score* scores; // [tokens, top_k]
  T* y; // [tokens, N]
  int64_t size; // of y
  int N, top_k;
};

constexpr int kOutputs = 8; // of a thread, 16 bytes
constexpr int kSumThreads = 256;

template <typename T, typename Score>
__global__ __launch_bounds__(kSumThreads) void weighted_sums(const __grid_constant__ Sums<T, Score> p) {
  wait_for_inputs();
  let_next_begin();
  int64_t at = (int64_t{blockIdx.x} * kSumThreads + threadIdx.x) * kOutputs;
  if (at >= p.size) {
    return;
  }
  int64_t token = at / p.N;
  auto* product = p.products + token * p.top_k * p.N + at % p.N;
  WeightedSum<T, Score> sums[kOutputs];
  for (int k = 0; k < p.top_k; k++) {
    T values[kOutputs];
    *reinterpret_cast<uint4*>(values) = *reinterpret_cast<const uint4*>(product + int64_t{k} * p.N);
    Score score = p.scores[token * p.top_k + k];
#pragma unroll
    for (int i = 0; i < kOutputs; i++) {
      sums[i].add(values[i], score, p.top_k == 1);
    }
  }
  T y[kOutputs];
#pragma unroll
  for (int i = 0; i < kOutputs; i++) {
    y[i] = sums[i].result();
  }
  *reinterpret_cast<uint4*>(p.y + at) = *reinterpret_cast<uint4*>(y);
}

template <typename T, typename Score>
void add(const array& products, const array& scores, array& out, int top_k, Encoder& encoder) {
  auto size = static_cast<int64_t>(out.size());
  Sums<T, Score> parameters = {
      gpu_ptr<T>(products), gpu_ptr<Score>(scores), gpu_ptr<T>(out), size, out.shape(-1), top_k};
  constexpr int kOfBlock = kOutputs * kSumThreads;
  launch(encoder, weighted_sums<T, Score>, (size + kOfBlock - 1) / kOfBlock, kSumThreads, 0, {products, scores}, {out},
         parameters);
}

} // namespace

bool combine_grouped(const GatherQMMCombine& primitive, const std::vector<array>& in, array& out, Encoder& encoder) {
  using P = GatherQMMCombine;
  auto params = primitive.params();
  int K = in[P::kX].shape(-1), N = out.shape(-1), top_k = in[P::kRhsIndices].shape(-1);
  auto lines = static_cast<int64_t>(in[P::kRhsIndices].size());
  bool is_bfloat16 = out.dtype() == mlx::core::bfloat16;
  if (lines < kGroupedFrom || !has_grouped_product(is_bfloat16, params.affine(), params.bits, params.group_size, N, K)) {
    return false;
  }
  int num_experts = in[P::kScales].size() / (int64_t{N} * (K / params.group_size));
  auto groups = group_by_expert(std::nullopt, in[P::kRhsIndices], 1, num_experts, encoder);
  array products({static_cast<int>(lines), N}, out.dtype(), nullptr, {});
  allocate(products, encoder);
  encoder.add_temporary(products);
  auto* biases = params.affine() ? &in[P::kBiases] : nullptr;
  auto* bias = primitive.has_bias() ? &in[P::bias_at(params)] : nullptr;
  Matrices down = {in[P::kW], in[P::kScales], biases, params.bits, params.group_size, bias};
  multiply_lines(in[P::kX], down, &groups, products, encoder);
  dispatch_half(out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    in[P::kScores].dtype() == mlx::core::float32
        ? add<T, float>(products, in[P::kScores], out, top_k, encoder)
        : add<T, T>(products, in[P::kScores], out, top_k, encoder);
  });
  return true;
}

} // namespace zmlx::on_cuda
