#include "gather_qmm_swiglu/grouped.h"

#include "cuda/grouped.cuh"
#include "cuda/grouped.h"

namespace zmlx::on_cuda {

bool swiglu_grouped(const GatherQMMSwiGLU& primitive, const std::vector<array>& in, array& out, Encoder& encoder) {
  using P = GatherQMMSwiGLU;
  auto& state = primitive.params();
  auto params = state.params();
  bool affine = params.affine();
  int K = in[P::kX].shape(-1), N = out.shape(-1), M = in[P::kX].shape(-2);
  auto lines = static_cast<int64_t>(out.size()) / N;
  bool is_bfloat16 = out.dtype() == mlx::core::bfloat16;
  if (lines < kGroupedFrom || !has_grouped_product(is_bfloat16, affine, params.bits, params.group_size, N, K)) {
    return false;
  }
  dispatch_weights(out.dtype(), affine, params.bits, params.group_size, [&](auto weights) {
    using W = typename decltype(weights)::type;
    using T = typename W::Type;
    int num_experts = in[P::kGateScales].size() / (int64_t{N} * (K / W::kGroup));
    auto groups = group_by_expert(in[P::kLhsIndices], in[P::kRhsIndices], M, num_experts, encoder);
    int bias = P::bias_at(params);
    auto matrix = [&](int w, int scales, int biases, int bias) -> GroupedMatrix<T> {
      return {gpu_ptr<char>(in[w]), gpu_ptr<char>(in[scales]), affine ? gpu_ptr<char>(in[biases]) : nullptr,
              state.has_bias ? gpu_ptr<T>(in[bias]) : nullptr};
    };
    bool clipped = state.activation == Activation::ClippedSwiglu;
    Grouped<T, 2> parameters = {
        gpu_ptr<T>(in[P::kX]),
        gpu_ptr<Tile>(groups.tiles),
        gpu_ptr<Line>(groups.lines),
        {matrix(P::kGateW, P::kGateScales, P::kGateBiases, bias), matrix(P::kUpW, P::kUpScales, P::kUpBiases, bias + 1)},
        gpu_ptr<T>(out),
        K,
        N,
        0,
        0,
        {clipped, static_cast<T>(state.alpha), static_cast<T>(state.limit)}};
    for (auto& input : in) {
      encoder.set_input_array(input);
    }
    launch(encoder, grouped_product<W, 2>, groups.num_tiles * blocks_of(N, 2), kGroupedThreads,
           grouped_shared_bytes(affine, W::kBits, W::kGroup, K), {groups.tiles, groups.lines}, {out}, parameters);
  });
  return true;
}

} // namespace zmlx::on_cuda
