// CUDA backend of SwiGLUMLP: silu(x @ gate) * (x @ up) for fewer than eight rows of x, one launch in place of five. More are
// stock's (op.cpp).

#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "swiglu_mlp/kernel.cuh"
#include "swiglu_mlp/swiglu_mlp.h"

namespace zmlx {

using namespace mlx::core;

namespace {

void eval(const SwiGLUMLP& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = SwiGLUMLP;
  using namespace on_cuda;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  allocate(out, encoder);
  if (out.size() == 0) {
    return;
  }
  auto in = all_in_rows(inputs, encoder);
  auto& state = primitive.params();
  int K = in[P::kX].shape(-1), N = out.shape(-1);
  unsigned lines = out.size() / N;
  dispatch_any_width(out.dtype(), state.bits, state.group_size, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    SwigluRows<T> parameters = {
        gpu_ptr<T>(in[P::kX]),
        {gpu_ptr<char>(in[P::kGateW]), gpu_ptr<T>(in[P::kGateScales]), gpu_ptr<T>(in[P::kGateBiases])},
        {gpu_ptr<char>(in[P::kUpW]), gpu_ptr<T>(in[P::kUpScales]), gpu_ptr<T>(in[P::kUpBiases])},
        gpu_ptr<T>(out),
        K,
        N};
    unsigned blocks = even_blocks(N, kProductWarps, lines, kSwigluBlocks * multiprocessors(encoder));
    launch(encoder, swiglu_mlp_qmv<T, kBits, kGroup>, dim3(blocks, lines), kProductWarps * 32, bytes_of_x<kBits>(K),
           {in[P::kX], in[P::kGateW], in[P::kGateScales], in[P::kGateBiases], in[P::kUpW], in[P::kUpScales],
            in[P::kUpBiases]},
           {out}, parameters);
  });
}

std::string refuse_on_cuda(const Request& r) {
  if (auto reason = on_cuda::refuse_weights(r, on_cuda::Products::Few); !reason.empty()) {
    return reason;
  }
  return on_cuda::refuse_rows(r);
}

} // namespace

GpuBackend swiglu_mlp_gpu() {
  return gpu_backend<SwiGLUMLP, eval>(refuse_on_cuda);
}

} // namespace zmlx
