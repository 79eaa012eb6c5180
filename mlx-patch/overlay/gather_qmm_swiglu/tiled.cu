#include "gather_qmm_swiglu/tiled.h"

#include "cuda/boxes.h"
#include "cuda/dispatch.h"
#include "cuda/tile.h"
#include "gather_qmm_swiglu/tiled.cuh"

namespace zmlx::on_cuda {

bool swiglu_tiled(
    const GatherQMMSwiGLU& primitive, const std::vector<array>& in, array& out, bool one_x, Encoder& encoder) {
  using P = GatherQMMSwiGLU;
  auto params = primitive.params().params();
  int K = in[P::kX].shape(-1), N = out.shape(-1), M = in[P::kX].shape(-2);
  auto lines = static_cast<int64_t>(out.size()) / N;
  int64_t row_bytes = K / 8 * params.bits, rows = in[P::kGateScales].size() / (K / params.group_size);
  if (stock_takes_qmv(lines) || !is_common_width(params.bits) || row_bytes % kPieceBytes != 0) {
    return false;
  }
  bool launched = false;
  dispatch_quantized(out.dtype(), params.bits, params.group_size, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    int multiprocessors = on_cuda::multiprocessors(encoder), in_line = N / kTiledOutputs;
    int warps = tiled_swiglu_warps<T, kBits, kGroup>(K, lines * in_line, in_line, multiprocessors);
    if (warps == 0) {
      return;
    }
    int64_t blocks = lines * in_line / warps;
    auto boxes = [&](int w) { return boxes_of(gpu_ptr<char>(in[w]), rows, row_bytes, warps * kTiledOutputs); };
    TiledSwiglu<T> parameters = {
        boxes(P::kGateW),
        boxes(P::kUpW),
        gpu_ptr<T>(in[P::kGateScales]),
        gpu_ptr<T>(in[P::kGateBiases]),
        gpu_ptr<T>(in[P::kUpScales]),
        gpu_ptr<T>(in[P::kUpBiases]),
        gpu_ptr<T>(in[P::kX]),
        gpu_ptr<uint32_t>(in[P::kLhsIndices]),
        gpu_ptr<uint32_t>(in[P::kRhsIndices]),
        gpu_ptr<T>(out),
        K,
        N,
        M,
        one_x};
    launch(encoder, gather_qmm_swiglu_tiled<T, kBits, kGroup>, blocks, warps * 32,
           tiled_swiglu_shared<T, kBits, kGroup>(K, warps, blocks, multiprocessors),
           {in[P::kX], in[P::kLhsIndices], in[P::kRhsIndices], in[P::kGateW], in[P::kGateScales], in[P::kGateBiases],
            in[P::kUpW], in[P::kUpScales], in[P::kUpBiases]},
           {out}, parameters);
    launched = true;
  });
  return launched;
}

} // namespace zmlx::on_cuda
