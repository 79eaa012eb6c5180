// CUDA backend of GatherQMMCombine: the down projection of a token's experts and their weighted sum, one launch in place of
// three or four; for many tokens grouped.cu has more.

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/fast.h"
#include "cuda/host.h"
#include "gather_qmm_combine/fast.cuh"
#include "gather_qmm_combine/gather_qmm_combine.h"
#include "gather_qmm_combine/grouped.h"
#include "gather_qmm_combine/kernel.cuh"
#include "gather_qmm_combine/mxfp4.cuh"

namespace zmlx {

using namespace mlx::core;

namespace {

// Warps of a block: one for each expert, unless their rows do not fit into shared memory.
int warps_of(int top_k, size_t bytes_of_warp) {
  return std::clamp<int>(on_cuda::kMostShared / 2 / bytes_of_warp, 1, std::min(top_k, on_cuda::kMostCombineWarps));
}

template <typename F>
void dispatch_score(Dtype score, Dtype dtype, F&& f) {
  score == float32 ? f(on_cuda::Type<float>()) : on_cuda::dispatch_half(dtype, f);
}

// Fewer than eight products; op.cpp leaves to stock what is not grouped of more.
void eval_mxfp4(const GatherQMMCombine& primitive, const std::vector<array>& in, array& out, on_cuda::Encoder& encoder) {
  using P = GatherQMMCombine;
  using namespace on_cuda;
  int K = in[P::kX].shape(-1), N = out.shape(-1), top_k = in[P::kRhsIndices].shape(-1);
  unsigned tokens = out.size() / N;
  int bias = P::bias_at(primitive.params());
  dispatch_half(out.dtype(), [&](auto type) {
    dispatch_score(in[P::kScores].dtype(), out.dtype(), [&](auto score) {
      using T = typename decltype(type)::type;
      using Score = typename decltype(score)::type;
      if constexpr (std::is_same_v<Score, float> || std::is_same_v<Score, T>) {
        Mxfp4Combine<T, Score> parameters = {
            gpu_ptr<T>(in[P::kX]),
            gpu_ptr<uint32_t>(in[P::kRhsIndices]),
            gpu_ptr<Score>(in[P::kScores]),
            {gpu_ptr<char>(in[P::kW]), gpu_ptr<uint8_t>(in[P::kScales])},
            primitive.has_bias() ? gpu_ptr<T>(in[bias]) : nullptr,
            gpu_ptr<T>(out),
            K,
            N,
            top_k};
        for (auto& input : in) {
          encoder.set_input_array(input);
        }
        unsigned blocks = (N + kMxfp4Outputs - 1) / kMxfp4Outputs;
        launch(encoder, gather_qmm_combine_mxfp4<T, Score>, dim3(blocks, tokens), kMxfp4CombineWarps * 32,
               top_k * mxfp4_bytes_of_x(K), {}, {out}, parameters);
      }
    });
  });
}

void eval(const GatherQMMCombine& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = GatherQMMCombine;
  using namespace on_cuda;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  allocate(out, encoder);
  if (out.size() == 0) {
    return;
  }
  auto in = all_in_rows(inputs, encoder);
  if (combine_grouped(primitive, in, out, encoder)) {
    return;
  }
  if (!primitive.params().affine()) {
    return eval_mxfp4(primitive, in, out, encoder);
  }
  auto state = primitive.state();
  int K = in[P::kX].shape(-1), N = out.shape(-1), top_k = in[P::kRhsIndices].shape(-1);
  auto tokens = static_cast<int64_t>(out.size()) / N;
  dispatch_any_width(out.dtype(), std::get<1>(state), std::get<0>(state), [&](auto type, auto bits, auto group) {
    dispatch_score(in[P::kScores].dtype(), out.dtype(), [&](auto score) {
      using T = typename decltype(type)::type;
      using Score = typename decltype(score)::type;
      if constexpr (std::is_same_v<Score, float> || std::is_same_v<Score, T>) {
        constexpr int kBits = bits, kGroup = group;
        size_t of_warp = combine_shared_bytes<T, kBits, kGroup>(K);
        int warps = warps_of(top_k, of_warp);
        Combine<T, Score> parameters = {
            gpu_ptr<T>(in[P::kX]),
            gpu_ptr<uint32_t>(in[P::kRhsIndices]),
            gpu_ptr<Score>(in[P::kScores]),
            {gpu_ptr<char>(in[P::kW]), gpu_ptr<T>(in[P::kScales]), gpu_ptr<T>(in[P::kBiases])},
            gpu_ptr<T>(out),
            K,
            N,
            top_k,
            warps};
        if constexpr (kBits == 4 || kBits == 8) {
          if (is_fast(std::get<3>(state), K, kBits, kGroup)) {
            parameters.warps = fast::experts_at_once<kBits, kGroup>(K, top_k);
            launch(encoder, fast::fast_combine<T, Score, kBits, kGroup>, tokens * (N / fast::kOutputs),
                   parameters.warps * 32, parameters.warps * fast::Layout<kBits, kGroup>::bytes(K),
                   {in[P::kX], in[P::kRhsIndices], in[P::kScores], in[P::kW], in[P::kScales], in[P::kBiases]}, {out},
                   parameters);
            return;
          }
        }
        bool qmv = stock_takes_qmv(tokens * top_k);
        auto kernel =
            qmv ? gather_qmm_combine_qmv<T, Score, kBits, kGroup> : gather_qmm_combine_mma<T, Score, kBits, kGroup>;
        unsigned grid = tokens * (N / (qmv ? kProductWarps : 16));
        unsigned block = qmv ? kProductWarps * 32 : warps * 32;
        launch(encoder, kernel, grid, block, qmv ? top_k * bytes_of_x<kBits>(K) : warps * of_warp,
               {in[P::kX], in[P::kRhsIndices], in[P::kScores], in[P::kW], in[P::kScales], in[P::kBiases]}, {out},
               parameters);
      }
    });
  });
}

std::string refuse_on_cuda(const Request& r) {
  auto inner = r.integer("inner");
  if (r.text("mode") == "mxfp4") {
    return on_cuda::refuse_mxfp4(r, r.integer("top_k"));
  }
  if (r.text("bias") != "none") {
    return "in mode 'affine' biases have no CUDA kernel";
  }
  size_t shared = inner * 2 + 16 * (inner * r.integer("bits") / 8 + inner / 8 + 64);
  if (r.integer("top_k") > on_cuda::kMostExperts) {
    return "stock adds more than " + std::to_string(on_cuda::kMostExperts) + " experts in another order";
  }
  auto reason = on_cuda::refuse_quantized(r);
  if (reason.empty() && shared > on_cuda::kMostShared / 2) {
    return "rows of " + std::to_string(inner) + " weights are too long for the shared memory of a block";
  }
  return reason;
}

} // namespace

GpuBackend gather_qmm_combine_gpu() {
  return gpu_backend<GatherQMMCombine, eval>(refuse_on_cuda, {"bias"});
}

} // namespace zmlx
