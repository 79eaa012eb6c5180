#include "gather_qmm_swiglu/grouped.h"

#include "cuda/dispatch.h"
#include "cuda/grouped.cuh"
#include "cuda/grouped.h"

namespace zmlx::on_cuda {

bool swiglu_grouped(const GatherQMMSwiGLU& primitive, const std::vector<array>& in, array& out, Encoder& encoder) {
  using P = GatherQMMSwiGLU;
  auto& state = primitive.params();
  auto params = state.params();
  if (!params.affine() || !is_common_width(params.bits) || state.has_bias || state.activation != Activation::Silu) {
    return false;
  }
  int K = in[P::kX].shape(-1), N = out.shape(-1), M = in[P::kX].shape(-2);
  auto lines = static_cast<int64_t>(out.size()) / N;
  size_t shared = grouped_shared_bytes(params.bits, params.group_size, K);
  if (lines < kGroupedFrom || shared > kMostShared) {
    return false;
  }
  dispatch_quantized(out.dtype(), params.bits, params.group_size, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    int num_experts = in[P::kGateScales].size() / (int64_t{N} * (K / kGroup));
    auto groups = group_by_expert(in[P::kLhsIndices], in[P::kRhsIndices], M, num_experts, encoder);
    auto matrices = [&](int w, int scales, int biases) -> EightRows<T> {
      return {gpu_ptr<char>(in[w]), gpu_ptr<T>(in[scales]), gpu_ptr<T>(in[biases])};
    };
    Grouped<T, 2> parameters = {
        gpu_ptr<T>(in[P::kX]),
        gpu_ptr<Tile>(groups.tiles),
        gpu_ptr<Line>(groups.lines),
        {matrices(P::kGateW, P::kGateScales, P::kGateBiases), matrices(P::kUpW, P::kUpScales, P::kUpBiases)},
        gpu_ptr<T>(out),
        K,
        N,
        0,
        0};
    launch(encoder, grouped_product<T, kBits, kGroup, 2>, groups.num_tiles * blocks_of(N, 2), kGroupedThreads, shared,
           {in[P::kX], groups.tiles, groups.lines, in[P::kGateW], in[P::kGateScales], in[P::kGateBiases], in[P::kUpW],
            in[P::kUpScales], in[P::kUpBiases]},
           {out}, parameters);
  });
  return true;
}

} // namespace zmlx::on_cuda
