// CUDA backend of RecordedLatentAttention: scores of all keys, and the result, two launches.

#include <cmath>

#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "recorded_latent_attention/kernel.cuh"
#include "recorded_latent_attention/recorded_latent_attention.h"

namespace zmlx {

using namespace mlx::core;

namespace {

void eval(const RecordedLatentAttention& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = RecordedLatentAttention;
  using namespace on_cuda;
  using namespace on_cuda::latents;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  allocate(out, encoder);
  if (out.size() == 0) {
    return;
  }
  auto latents = written_in_place(inputs[P::kLatents], "latents");
  auto keys = written_in_place(inputs[P::kKeys], "keys");
  auto& state = primitive.params();
  int B = out.shape(0), H = out.shape(1), capacity = latents.shape(2);
  // heads may lie apart: they are a part of wider ones
  int head_axis = state.rope ? 2 : 1;
  auto heads_apart = [&](const array& a) {
    auto apart = a.strides(head_axis);
    return B == 1 && a.strides(3) == 1 && apart % 8 == 0 && apart < (1 << 24) &&
        reinterpret_cast<uintptr_t>(gpu_ptr<char>(a)) % 16 == 0;
  };
  bool is_apart = heads_apart(inputs[P::kQRope]);
  auto q = in_rows(inputs[P::kQ], encoder);
  auto q_rope = is_apart ? inputs[P::kQRope] : in_rows(inputs[P::kQRope], encoder);
  auto latent = in_rows(inputs[P::kLatent], encoder), k_rope = in_rows(inputs[P::kKRope], encoder);
  auto& lengths = inputs[P::kLengths];
  size_t next = P::kOptional;
  auto position = state.rope ? inputs[next++] : lengths;
  auto freqs = state.rope && state.rope->has_freqs ? inputs[next] : lengths;
  // rows of scores begin where 16 bytes can be read at once
  int score_stride = (capacity + 7) / 8 * 8;
  array scores({B, H, score_stride}, out.dtype(), nullptr, {});
  allocate(scores, encoder);
  encoder.add_temporary(scores);
  dispatch_type(out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    LatentStep<T> step = {
        gpu_ptr<T>(q),
        gpu_ptr<T>(q_rope),
        gpu_ptr<T>(latent),
        gpu_ptr<T>(k_rope),
        gpu_ptr<T>(latents),
        gpu_ptr<T>(keys),
        gpu_ptr<int>(lengths),
        gpu_ptr<T>(scores),
        gpu_ptr<T>(out),
        H,
        capacity,
        is_apart ? static_cast<int>(q_rope.strides(head_axis)) : kRope,
        score_stride,
        state.scale,
        state.rope ? gpu_ptr<int>(position) : nullptr,
        {}};
    if (state.rope) {
      bool has_freqs = state.rope->has_freqs;
      step.rope = {
          nullptr,
          has_freqs ? gpu_ptr<float>(freqs) : nullptr,
          kRope,
          state.rope->dims,
          has_freqs ? static_cast<int>(freqs.strides(0)) : 0,
          state.rope->traditional,
          0.0f,
          std::log2(state.rope->base),
          state.rope->scale};
    }
    unsigned groups = (H + kHeads - 1) / kHeads;
    unsigned blocks = std::max(1u, 2 * multiprocessors(encoder) / groups);
    blocks = std::min<unsigned>(blocks, (capacity + kScoreWarps - 1) / kScoreWarps);
    launch(encoder, latent_scores<T>, dim3(blocks, groups, B), kScoreWarps * 32, 0,
           {q, q_rope, latent, k_rope, lengths, position, freqs}, {latents, keys, scores}, step);
    launch(encoder, latent_result<T>, dim3(kLatent / kColumns, groups, B), 1024, 0, {scores, latents, lengths}, {out}, step);
  });
}

std::string refuse_on_cuda(const Request& r) {
  if (r.integer("latent_dim") != on_cuda::latents::kLatent || r.integer("rope_dim") != on_cuda::latents::kRope) {
    return "the CUDA kernel is for latents of 512 values and rotated keys of 64, not for " +
        std::to_string(r.integer("latent_dim")) + " and " + std::to_string(r.integer("rope_dim"));
  }
  return on_cuda::refuse(r);
}

} // namespace

GpuBackend recorded_latent_attention_gpu() {
  return gpu_backend<RecordedLatentAttention, eval>(refuse_on_cuda);
}

} // namespace zmlx
