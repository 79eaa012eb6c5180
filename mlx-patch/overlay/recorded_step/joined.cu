// Launches that stand for several (joined.h).

#include "recorded_step/joined.h"

#include "cuda/dispatch.h"
#include "cuda/encoder_access.h"
#include "cuda/host.h"
#include "quantized_matmul/held.h"
#include "recorded_step/routed.cuh"

namespace zmlx {

using namespace mlx::core;
using namespace on_cuda;

void JoinedProducts::eval_gpu(const std::vector<array>& inputs, std::vector<array>& outputs) {
  auto& encoder = cu::get_command_encoder(stream());
  for (auto& out : outputs) {
    allocate(out, encoder);
  }
  auto in = all_in_rows(inputs, encoder);
  std::optional<HeldNorm> norm;
  if (eps_) {
    norm = HeldNorm{in[1], in[2], outputs[0], outputs[1], *eps_};
  }
  std::vector<HeldMatrix> matrices;
  size_t next = eps_ ? 3 : 1;
  for (size_t i = eps_ ? 2 : 0; i < outputs.size(); i++, next += 3) {
    matrices.push_back({in[next], in[next + 1], in[next + 2], outputs[i]});
  }
  launch_held(encoder, in[0], norm, matrices, group_size_);
}

void NormedRouting::eval_gpu(const std::vector<array>& inputs, std::vector<array>& outputs) {
  auto& encoder = cu::get_command_encoder(stream());
  for (auto& out : outputs) {
    allocate(out, encoder);
  }
  auto in = all_in_rows(inputs, encoder);
  auto& x = in[0];
  std::optional<HeldNorm> norm = HeldNorm{in[1], in[2], outputs[0], outputs[1], eps_};
  auto &indices = outputs[2], &weights = outputs[3];
  int K = static_cast<int>(x.size()), experts = in[3].shape(-2);
  EncoderAccess(encoder).has_clusters();
  set_arrays(encoder, norm);
  dispatch_quantized(x.dtype(), bits_, group_size_, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    Routing<T> p = {
        normed_of<T>(x, norm),
        {gpu_ptr<char>(in[3]), gpu_ptr<T>(in[4]), gpu_ptr<T>(in[5])},
        {nullptr, gpu_ptr<uint32_t>(indices), gpu_ptr<T>(weights), experts, top_k_, normalize_},
        K};
    launch(encoder, normed_routing<T, kBits, kGroup>, kRoutingBlocks, routing_threads(experts),
           held_vector_bytes<kBits>(K, true), {x, in[3], in[4], in[5]}, {indices, weights}, p);
  });
}

} // namespace zmlx
