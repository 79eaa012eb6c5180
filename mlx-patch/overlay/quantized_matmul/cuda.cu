// CUDA backend of QuantizedMatmulRows; from eight rows of x on, where stock takes another kernel, cuda/grouped.cu, and for one
// vector of each head heads.cu.

#include "cuda/dispatch.h"
#include "cuda/grouped.h"
#include "cuda/host.h"
#include "quantized_matmul/fast.h"
#include "quantized_matmul/heads.h"
#include "quantized_matmul/kernel.cuh"
#include "quantized_matmul/mxfp4.cuh"
#include "quantized_matmul/quantized_matmul.h"
#include "quantized_matmul/streamed.cuh"

namespace zmlx {

using namespace mlx::core;

namespace {

void eval_mxfp4(const std::vector<array>& in, const array* bias, array& out, on_cuda::Encoder& encoder) {
  using P = QuantizedMatmulRows;
  using namespace on_cuda;
  int K = in[P::kX].shape(-1), N = out.shape(-1);
  unsigned lines = out.size() / N;
  dispatch_half(out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    Mxfp4Product<T> parameters = {
        gpu_ptr<T>(in[P::kX]),
        {gpu_ptr<char>(in[P::kW]), gpu_ptr<uint8_t>(in[P::kScales])},
        bias ? gpu_ptr<T>(*bias) : nullptr,
        gpu_ptr<T>(out),
        K,
        N};
    unsigned blocks = even_blocks(N, kMxfp4Warps, lines, 4 * multiprocessors(encoder));
    launch(encoder, quantized_matmul_mxfp4<T>, dim3(blocks, lines), kMxfp4Warps * 32, mxfp4_bytes_of_x(K),
           {in[P::kX], in[P::kW], in[P::kScales], in.back()}, {out}, parameters);
  });
}

void eval(const QuantizedMatmulRows& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = QuantizedMatmulRows;
  using namespace on_cuda;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  allocate(out, encoder);
  if (out.size() == 0) {
    return;
  }
  if (inputs[P::kW].ndim() > 2) {
    auto [group_size, bits] = std::make_pair(std::get<0>(primitive.state()), std::get<1>(primitive.state()));
    return quantized_heads(inputs, bits, group_size, out, encoder);
  }
  auto in = all_in_rows(inputs, encoder);
  auto state = primitive.state();
  auto* bias = primitive.has_bias() ? &in.back() : nullptr;
  bool affine = std::get<2>(state) == QuantizationMode::Affine;
  if (!stock_takes_qmv(out.size() / out.shape(-1))) {
    auto* biases = affine ? &in[P::kBiases] : nullptr;
    Matrices matrix = {in[P::kW], in[P::kScales], biases, std::get<1>(state), std::get<0>(state)};
    return multiply_lines(in[P::kX], matrix, nullptr, out, encoder);
  }
  if (!affine) {
    return eval_mxfp4(in, bias, out, encoder);
  }
  if (multiply_fast(primitive, in, out, encoder)) {
    return;
  }
  int K = in[P::kX].shape(-1), N = out.shape(-1);
  unsigned lines = out.size() / N;
  dispatch_any_width(out.dtype(), std::get<1>(state), std::get<0>(state), [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    Product<T> parameters = {
        gpu_ptr<T>(in[P::kX]),
        {gpu_ptr<char>(in[P::kW]), gpu_ptr<T>(in[P::kScales]), gpu_ptr<T>(in[P::kBiases])},
        bias ? gpu_ptr<T>(*bias) : nullptr,
        gpu_ptr<T>(out),
        K,
        N};
    if constexpr (is_common_width(kBits)) {
      int tiles = std::min(tiles_at_once<T, kBits, kGroup>(K), kMostTilesAtOnce);
      bool many_rows = N % kTileRows == 0 && N / kTileRows >= 4 * multiprocessors(encoder);
      if (many_rows && lines == 1 && !bias && tiles >= 2) {
        size_t shared = bytes_of_x<kBits>(K) + tiles * tile_bytes<T, kBits, kGroup>(K);
        launch(encoder, streamed_product<T, kBits, kGroup>, 2 * multiprocessors(encoder), kProductWarps * 32, shared,
               {in[P::kX], in[P::kW], in[P::kScales], in[P::kBiases]}, {out}, parameters);
        return;
      }
    }
    // rows in turn where there are more than the chip runs at once
    unsigned blocks = std::min((N + kProductWarps - 1) / kProductWarps, 6 * multiprocessors(encoder));
    launch(encoder, quantized_matmul_qmv<T, kBits, kGroup>, dim3(blocks, lines), kProductWarps * 32,
           bytes_of_x<kBits>(K), {in[P::kX], in[P::kW], in[P::kScales], in[P::kBiases], in.back()}, {out}, parameters);
  });
}

std::string refuse_on_cuda(const Request& r) {
  if (r.text("mode") == "mxfp4") {
    return on_cuda::refuse_mxfp4(r);
  }
  if (auto reason = on_cuda::refuse_quantized(r, on_cuda::Products::Few); !reason.empty()) {
    return reason;
  }
  return on_cuda::refuse_rows(r);
}

} // namespace

GpuBackend quantized_matmul_gpu() {
  return gpu_backend<QuantizedMatmulRows, eval>(refuse_on_cuda);
}

} // namespace zmlx
