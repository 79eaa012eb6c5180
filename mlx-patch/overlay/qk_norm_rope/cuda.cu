// CUDA backend of QKNormRope: a warp for each head of each token norms and turns it, one launch in place of two. In memory
// the result is [B, L, H, D], as stock's is.

#include <algorithm>

#include "cuda/depend.cuh"
#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "cuda/norm_rope.cuh"
#include "qk_norm_rope/qk_norm_rope.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

template <typename T>
struct Heads {
  const T* x; // [B, L, H, D]
  const int32_t* offsets;
  T* y; // [B, L, H, D]
  int L, H;
  int64_t heads; // B * L * H
  int offset_stride;
  NormRope<T> norm_rope;
};

constexpr int kWarps = 4;

template <typename T>
__global__ __launch_bounds__(kWarps * 32) void qk_norm_rope(const __grid_constant__ Heads<T> p) {
  extern __shared__ __align__(16) char shared[];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t head = int64_t{blockIdx.x} * kWarps + warp;
  wait_for_inputs();
  let_next_begin();
  if (head >= p.heads) {
    return;
  }
  int D = p.norm_rope.D;
  int64_t token = head / p.H;
  uint32_t at = static_cast<uint32_t>(token % p.L) + p.offsets[token / p.L * p.offset_stride];
  auto turn = p.norm_rope.turn(at, lane);
  p.norm_rope(p.x + head * D, reinterpret_cast<T*>(shared) + warp * D, p.y + head * D, turn, lane);
}

} // namespace

} // namespace on_cuda

namespace {

void eval(const QKNormRope& primitive, const std::vector<array>& inputs, std::span<array> outputs) {
  using P = QKNormRope;
  using namespace on_cuda;
  auto& out = outputs[0];
  auto& encoder = cu::get_command_encoder(out.primitive().stream());
  int B = out.shape(0), H = out.shape(1), L = out.shape(2), D = out.shape(3);
  allocate(out, {int64_t{L} * H * D, D, int64_t{H} * D, 1}, encoder);
  if (out.size() == 0) {
    return;
  }
  auto [num_heads, has_weight, has_freqs, eps, dims, traditional, base, scale, input_scale] = primitive.state();
  int next = P::kOptional;
  auto x = in_rows(inputs[P::kX], encoder);
  auto offset = inputs[P::kOffset];
  auto weight = has_weight ? in_rows(inputs[next++], encoder) : x;
  auto freqs = has_freqs ? inputs[next] : x;
  dispatch_type(out.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    Heads<T> parameters = {
        gpu_ptr<T>(x),
        gpu_ptr<int32_t>(offset),
        gpu_ptr<T>(out),
        L,
        H,
        int64_t{B} * L * H,
        offset.size() > 1 ? static_cast<int>(offset.strides(0)) : 0,
        {has_weight ? gpu_ptr<T>(weight) : nullptr,
         has_freqs ? gpu_ptr<float>(freqs) : nullptr,
         D,
         dims,
         has_freqs ? static_cast<int>(freqs.strides(0)) : 0,
         traditional,
         eps,
         std::log2(base),
         scale,
         input_scale}};
    unsigned blocks = (parameters.heads + kWarps - 1) / kWarps;
    launch(encoder, qk_norm_rope<T>, blocks, kWarps * 32, kWarps * D * sizeof(T), {x, offset, weight, freqs}, {out},
           parameters);
  });
}

std::string refuse_on_cuda(const Request& r) {
  int64_t most = std::min<int64_t>(32 * 16 / static_cast<int64_t>(r.dtype.size()), on_cuda::kWidestHead);
  if (r.integer("head_dim") > most) {
    return "stock norms heads of more than " + std::to_string(most) + " values in another order";
  }
  return on_cuda::refuse(r);
}

} // namespace

GpuBackend qk_norm_rope_gpu() {
  return gpu_backend<QKNormRope, eval>(refuse_on_cuda, {"input_scale"});
}

} // namespace zmlx
