// CUDA backend of GatherQMMSwiGLU: silu(x @ gate) * (x @ up), or what else joins both, for all experts of all rows, one launch
// in place of five or more, or two where there are many rows (grouped.cu).

#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "gather_qmm_swiglu/fast.h"
#include "gather_qmm_swiglu/gather_qmm_swiglu.h"
#include "gather_qmm_swiglu/grouped.h"
#include "gather_qmm_swiglu/kernel.cuh"
#include "gather_qmm_swiglu/mxfp4.cuh"
#include "gather_qmm_swiglu/tiled.h"

namespace zmlx {

using namespace mlx::core;

namespace {

template <typename T>
on_cuda::EightRows<T> matrices(const array& w, const array& scales, const array& biases) {
  return {gpu_ptr<char>(w), gpu_ptr<T>(scales), gpu_ptr<T>(biases)};
}

// Fewer than eight products; op.cpp leaves to stock what is not grouped of more.
void eval_mxfp4(const GatherQMMSwiGLU::State& state, const std::vector<array>& in, array& out, bool one_x, on_cuda::Encoder& encoder) {
  using P = GatherQMMSwiGLU;
  using namespace on_cuda;
  int K = in[P::kX].shape(-1), N = out.shape(-1), M = in[P::kX].shape(-2);
  unsigned lines = out.size() / N;
  auto matrix = [&](int w, int scales) { return Mxfp4{gpu_ptr<char>(in[w]), gpu_ptr<uint8_t>(in[scales])}; };
  int bias = P::bias_at(state.params());
  dispatch_half(out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    Mxfp4Swiglu<T> parameters = {
        gpu_ptr<T>(in[P::kX]),
        gpu_ptr<uint32_t>(in[P::kLhsIndices]),
        gpu_ptr<uint32_t>(in[P::kRhsIndices]),
        matrix(P::kGateW, P::kGateScales),
        matrix(P::kUpW, P::kUpScales),
        state.has_bias ? gpu_ptr<T>(in[bias]) : nullptr,
        state.has_bias ? gpu_ptr<T>(in[bias + 1]) : nullptr,
        gpu_ptr<T>(out),
        K,
        N,
        M,
        one_x,
        {state.activation == Activation::ClippedSwiglu, static_cast<T>(state.alpha), static_cast<T>(state.limit)}};
    for (auto& input : in) {
      encoder.set_input_array(input);
    }
    unsigned blocks = even_blocks(N, kMxfp4SwigluWarps, lines, 3 * multiprocessors(encoder));
    launch(encoder, gather_qmm_swiglu_mxfp4<T>, dim3(blocks, lines), kMxfp4SwigluWarps * 32, mxfp4_bytes_of_x(K), {}, {out},
           parameters);
  });
}

void eval(const GatherQMMSwiGLU& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = GatherQMMSwiGLU;
  using namespace on_cuda;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  allocate(out, encoder);
  if (out.size() == 0) {
    return;
  }
  // in a decode step all products are of one vector, whose number is broadcast
  bool one_x = inputs[P::kLhsIndices].data_size() == 1;
  std::vector<array> in;
  for (auto& input : inputs) {
    bool as_it_is = one_x && in.size() == P::kLhsIndices;
    in.push_back(as_it_is ? input : in_rows(input, encoder));
  }
  if (swiglu_grouped(primitive, in, out, encoder)) {
    return;
  }
  if (!primitive.params().params().affine()) {
    return eval_mxfp4(primitive.params(), in, out, one_x, encoder);
  }
  if (swiglu_fast(primitive, in, out, one_x, encoder) || swiglu_tiled(primitive, in, out, one_x, encoder)) {
    return;
  }
  auto state = primitive.state();
  int K = in[P::kX].shape(-1), N = out.shape(-1), M = in[P::kX].shape(-2);
  auto lines = static_cast<int64_t>(out.size()) / N;
  dispatch_any_width(out.dtype(), std::get<1>(state), std::get<0>(state), [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    Swiglu<T> parameters = {
        gpu_ptr<T>(in[P::kX]),
        gpu_ptr<uint32_t>(in[P::kLhsIndices]),
        gpu_ptr<uint32_t>(in[P::kRhsIndices]),
        matrices<T>(in[P::kGateW], in[P::kGateScales], in[P::kGateBiases]),
        matrices<T>(in[P::kUpW], in[P::kUpScales], in[P::kUpBiases]),
        gpu_ptr<T>(out),
        K,
        N,
        M,
        one_x};
    bool qmv = stock_takes_qmv(lines);
    auto kernel = qmv ? gather_qmm_swiglu_qmv<T, kBits, kGroup> : gather_qmm_swiglu_mma<T, kBits, kGroup>;
    int warps = swiglu_warps(
        lines * (N / 8), N / 8, SixteenRows<T, kBits, kGroup>::bytes(K), K * sizeof(T), multiprocessors(encoder));
    unsigned blocks = even_blocks(N, kProductWarps, lines, kSwigluBlocks * multiprocessors(encoder));
    auto grid = qmv ? dim3(blocks, lines) : dim3(lines * (N / (8 * warps)));
    unsigned block = qmv ? kProductWarps * 32 : warps * 32;
    size_t shared = qmv ? bytes_of_x<kBits>(K) : swiglu_shared_bytes<T, kBits, kGroup>(K, warps);
    launch(encoder, kernel, grid, block, shared,
           {in[P::kX], in[P::kLhsIndices], in[P::kRhsIndices], in[P::kGateW], in[P::kGateScales], in[P::kGateBiases],
            in[P::kUpW], in[P::kUpScales], in[P::kUpBiases]},
           {out}, parameters);
  });
}

std::string refuse_on_cuda(const Request& r) {
  if (r.text("mode") == "mxfp4") {
    return r.text("activation") == "gelu_tanh" ? "gelu_tanh of the gate has no CUDA kernel" : on_cuda::refuse_mxfp4(r);
  }
  if (r.text("bias") != "none" || r.text("activation") != "silu") {
    return "in mode 'affine' biases and activations other than silu have no CUDA kernel";
  }
  auto reason = on_cuda::refuse_quantized(r);
  auto inner = r.integer("inner");
  size_t shared = inner * 2 + 16 * (inner * r.integer("bits") / 8 + inner / 8 + 64);
  if (reason.empty() && shared > on_cuda::kMostShared) {
    return "rows of " + std::to_string(inner) + " weights are too long for the shared memory of a block";
  }
  return reason;
}

} // namespace

GpuBackend gather_qmm_swiglu_gpu() {
  return gpu_backend<GatherQMMSwiGLU, eval>(refuse_on_cuda, {"bias", "activation"});
}

} // namespace zmlx
