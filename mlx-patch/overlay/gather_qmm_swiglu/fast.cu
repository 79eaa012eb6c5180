#include "gather_qmm_swiglu/fast.h"

#include "cuda/boxes.h"
#include "cuda/dispatch.h"
#include "cuda/fast.h"
#include "gather_qmm_swiglu/fast.cuh"

namespace zmlx::on_cuda {

bool swiglu_fast(
    const GatherQMMSwiGLU& primitive, const std::vector<array>& in, array& out, bool one_x, Encoder& encoder) {
  using P = GatherQMMSwiGLU;
  auto params = primitive.params().params();
  int K = in[P::kX].shape(-1), N = out.shape(-1), M = in[P::kX].shape(-2);
  if (!is_fast(primitive.params().precision, K, params.bits, params.group_size)) {
    return false;
  }
  int64_t row_bytes = K / 8 * params.bits, rows = in[P::kGateScales].size() / (K / params.group_size);
  int64_t lines = out.size() / N;
  bool launched = false;
  dispatch_quantized(out.dtype(), params.bits, params.group_size, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    auto launch_tiles = [&](auto tiles) {
      constexpr int kTiles = tiles, kOutputs = kTiles * fast::kTileOutputs;
      fast::SwigluShared<T, kBits, kGroup> shared(K, kTiles);
      if (launched || N % kOutputs != 0 || shared.scale_bytes() % 16 != 0 || shared.bytes() > static_cast<int>(kMostShared)) {
        return;
      }
      auto boxes = [&](int w) { return boxes_of(gpu_ptr<char>(in[w]), rows, row_bytes, kOutputs); };
      TiledSwiglu<T> parameters = {
          boxes(P::kGateW),
          boxes(P::kUpW),
          gpu_ptr<T>(in[P::kGateScales]),
          gpu_ptr<T>(in[P::kGateBiases]),
          gpu_ptr<T>(in[P::kUpScales]),
          gpu_ptr<T>(in[P::kUpBiases]),
          gpu_ptr<T>(in[P::kX]),
          // of one vector no number is looked up
          in[P::kX].size() == static_cast<size_t>(K) ? nullptr : gpu_ptr<uint32_t>(in[P::kLhsIndices]),
          gpu_ptr<uint32_t>(in[P::kRhsIndices]),
          gpu_ptr<T>(out),
          K,
          N,
          M,
          one_x};
      launch(encoder, fast::fast_swiglu<T, kBits, kGroup, kTiles>, lines * (N / kOutputs), fast::swiglu_threads(kTiles),
             shared.bytes(),
             {in[P::kX], in[P::kLhsIndices], in[P::kRhsIndices], in[P::kGateW], in[P::kGateScales], in[P::kGateBiases],
              in[P::kUpW], in[P::kUpScales], in[P::kUpBiases]},
             {out}, parameters);
      launched = true;
    };
    launch_tiles(Number<3>());
    launch_tiles(Number<2>());
    launch_tiles(Number<1>());
  });
  return launched;
}

} // namespace zmlx::on_cuda
