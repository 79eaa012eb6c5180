// CUDA backend of RecordedAttention: one launch, or for more than 1,024 keys two (kernel.cuh).

#include <cmath>

#include "cuda/dispatch.h"
#include "cuda/encoder_access.h"
#include "cuda/host.h"
#include "recorded_attention/kernel.cuh"
#include "recorded_attention/recorded_attention.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

template <typename F>
void dispatch_head_dim(int head_dim, F&& f) {
  switch (head_dim) {
    case 64:
      return f(Number<64>());
    case 96:
      return f(Number<96>());
    case 128:
      return f(Number<128>());
  }
  unexpected("width of heads");
}

template <typename T>
NormRope<T> norm_rope_of(const QKNormRope::State& state, const array* weight, const array* freqs, int head_dim) {
  return {
      weight ? gpu_ptr<T>(*weight) : nullptr,
      freqs ? gpu_ptr<float>(*freqs) : nullptr,
      head_dim,
      state.dims,
      freqs ? static_cast<int>(freqs->strides(0)) : 0,
      state.traditional,
      state.eps,
      std::log2(state.base),
      state.scale,
      state.input_scale};
}

} // namespace

} // namespace on_cuda

namespace {

void eval(const RecordedAttention& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = RecordedAttention;
  using namespace on_cuda;
  using namespace on_cuda::attention;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  allocate(out, encoder);
  if (out.size() == 0) {
    return;
  }
  auto keys = written_in_place(inputs[P::kKeys], "keys");
  auto values = written_in_place(inputs[P::kValues], "values");
  std::vector<array> in;
  for (auto& input : inputs) {
    bool is_buffer = in.size() == P::kKeys || in.size() == P::kValues;
    in.push_back(is_buffer ? input : in_rows(input, encoder));
  }
  auto& state = primitive.params();
  size_t next = P::kOptional;
  auto optional = [&](bool given) { return given ? &in[next++] : nullptr; };
  auto* sinks = optional(state.has_sinks);
  auto* position = optional(state.norm_rope.has_value());
  auto* weight_q = optional(position && state.norm_rope->has_weight);
  auto* weight_k = optional(position && state.norm_rope->has_weight);
  auto* freqs = optional(position && state.norm_rope->has_freqs);
  int B = out.shape(0), H = out.shape(1), D = out.shape(3), kv_heads = keys.shape(1);
  array partials({B, H, kShares, D}, float32, nullptr, {}), sums({B, H, kShares, 2}, float32, nullptr, {});
  if (state.many_keys) {
    for (auto* a : {&partials, &sums}) {
      allocate(*a, encoder);
      encoder.add_temporary(*a);
    }
  }
  dispatch_type(out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_head_dim(D, [&](auto dim) {
      constexpr int kDim = dim;
      Step<T> step = {
          gpu_ptr<T>(in[P::kQ]),
          gpu_ptr<T>(in[P::kK]),
          gpu_ptr<T>(in[P::kV]),
          gpu_ptr<T>(keys),
          gpu_ptr<T>(values),
          gpu_ptr<int>(in[P::kLengths]),
          sinks ? gpu_ptr<T>(*sinks) : nullptr,
          gpu_ptr<T>(out),
          state.many_keys ? gpu_ptr<float>(partials) : nullptr,
          state.many_keys ? gpu_ptr<float2>(sums) : nullptr,
          H,
          kv_heads,
          keys.shape(2),
          state.ring ? state.ring->keep : 0,
          state.ring ? state.ring->shift : 0,
          state.ring.has_value(),
          state.scale,
          position ? gpu_ptr<int>(*position) : nullptr,
          {},
          {}};
      if (position) {
        step.norm_rope_q = norm_rope_of<T>(*state.norm_rope, weight_q, freqs, D);
        step.norm_rope_k = norm_rope_of<T>(*state.norm_rope, weight_k, freqs, D);
      }
      for (size_t i = 0; i < in.size(); i++) {
        encoder.set_input_array(in[i]);
      }
      auto blocks = [&](auto plan) { return dim3(plan.kBlocks, kv_heads * plan.sets(H / kv_heads), B); };
      if (!state.many_keys) {
        using Few = FewKeys<kDim>;
        EncoderAccess(encoder).has_clusters();
        launch(encoder, few_keys<T, kDim>, blocks(Few()), Few::kWarps * 32, Few::template kSharedBytes<T, kDim>, {},
               {keys, values, out}, step);
        return;
      }
      auto launch_many = [&](auto plan) {
        using Many = decltype(plan);
        launch(encoder, many_keys<T, kDim, Many>, blocks(plan), Many::kWarps * 32, Many::template kSharedBytes<T, kDim>, {},
               {keys, values, partials, sums}, step);
      };
      H / kv_heads <= 4 ? launch_many(ManyKeys<4>()) : launch_many(ManyKeys<8>());
      launch(encoder, join_shares<T, kDim>, dim3(kDim / 32, H, B), 256, 0, {partials, sums}, {out}, step);
    });
  });
}

std::string refuse_on_cuda(const Request& r) {
  auto dim = r.integer("head_dim");
  if (dim != 64 && dim != 96 && dim != 128) {
    return "stock has no vector attention over heads of " + std::to_string(dim) + " values";
  }
  return on_cuda::refuse(r);
}

} // namespace

GpuBackend recorded_attention_gpu() {
  return gpu_backend<RecordedAttention, eval>(refuse_on_cuda);
}

} // namespace zmlx
