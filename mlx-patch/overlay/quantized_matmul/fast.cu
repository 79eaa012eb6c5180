#include "quantized_matmul/fast.h"

#include "cuda/dispatch.h"
#include "cuda/fast.h"
#include "quantized_matmul/fast.cuh"

namespace zmlx::on_cuda {

using namespace mlx::core;

bool multiply_fast(const QuantizedMatmulRows& primitive, const std::vector<array>& in, array& out, Encoder& encoder) {
  using P = QuantizedMatmulRows;
  auto [group_size, bits, mode, transpose, precision, has_bias] = primitive.state();
  int K = in[P::kX].shape(-1), N = out.shape(-1);
  if (!is_fast(precision, K, bits, group_size)) {
    return false;
  }
  unsigned lines = out.size() / N;
  dispatch_quantized(out.dtype(), bits, group_size, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    Product<T> parameters = {
        gpu_ptr<T>(in[P::kX]),
        {gpu_ptr<char>(in[P::kW]), gpu_ptr<T>(in[P::kScales]), gpu_ptr<T>(in[P::kBiases])},
        primitive.has_bias() ? gpu_ptr<T>(in.back()) : nullptr,
        gpu_ptr<T>(out),
        K,
        N};
    int tiles = (N + fast::kTileRows - 1) / fast::kTileRows;
    auto shape = fast::shape_of(tiles, K / fast::Layout<kBits, kGroup>::kPiece, multiprocessors(encoder));
    launch(encoder, fast::fast_product<T, kBits, kGroup>, dim3(shape.blocks, lines), shape.warps * 32,
           fast::Layout<kBits, kGroup>::bytes(K), {in[P::kX], in[P::kW], in[P::kScales], in[P::kBiases], in.back()}, {out},
           parameters, shape.parts);
  });
  return true;
}

} // namespace zmlx::on_cuda
