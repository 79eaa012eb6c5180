#include "quantized_matmul/grouped.h"

#include "cuda/dispatch.h"
#include "cuda/grouped.cuh"

namespace zmlx::on_cuda {

void multiply_many_rows(const QuantizedMatmulRows& primitive, const std::vector<array>& in, array& out, Encoder& encoder) {
  using P = QuantizedMatmulRows;
  auto state = primitive.state();
  int K = in[P::kX].shape(-1), N = out.shape(-1);
  unsigned lines = out.size() / N, blocks = N / kBlockRows;
  // as many as every multiprocessor has a block for, if there are
  unsigned tile_lines = kTileLines;
  while (tile_lines > 16 && (lines + tile_lines - 1) / tile_lines * blocks < unsigned(multiprocessors(encoder))) {
    tile_lines /= 2;
  }
  dispatch_quantized(out.dtype(), std::get<1>(state), std::get<0>(state), [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    Grouped<T, 1> parameters = {
        gpu_ptr<T>(in[P::kX]),
        nullptr,
        nullptr,
        {{gpu_ptr<char>(in[P::kW]), gpu_ptr<T>(in[P::kScales]), gpu_ptr<T>(in[P::kBiases])}},
        gpu_ptr<T>(out),
        K,
        N,
        lines,
        tile_lines};
    launch(encoder, grouped_product<T, kBits, kGroup, 1>, (lines + tile_lines - 1) / tile_lines * blocks, kGroupedThreads,
           grouped_shared_bytes(kBits, kGroup, K), {in[P::kX], in[P::kW], in[P::kScales], in[P::kBiases]}, {out},
           parameters);
  });
}

} // namespace zmlx::on_cuda
