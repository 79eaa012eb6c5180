// CUDA backend of QKNormRope: a warp for each head of each token norms and turns it, one launch in place of two.
//
// The lanes add squares as the first warp of stock's `rms_norm_small` does; of a head of up to 256 values of 16 bits that is
// all of them. Turned pairs are written as mlx/backend/cuda/rope.cu writes them. In memory the result is [B, L, H, D], as
// stock's is.

#include "cuda/dispatch.h"
#include "cuda/host.h"
#include "cuda/rows.cuh"
#include "qk_norm_rope/qk_norm_rope.h"

namespace zmlx {

using namespace mlx::core;

namespace on_cuda {

namespace {

template <typename T>
struct NormRope {
  const T* x; // [B, L, H, D]
  const T* weight; // [D], or null
  const int32_t* offsets;
  const float* freqs; // [dims / 2], or null
  T* y; // [B, L, H, D]
  int L, H, D, dims;
  int64_t heads; // B * L * H
  int offset_stride, freqs_stride;
  bool traditional;
  float eps;
  float log2_base, scale;
};

constexpr int kWarps = 4;

template <typename T>
__global__ __launch_bounds__(kWarps * 32) void qk_norm_rope(const __grid_constant__ NormRope<T> p) {
  extern __shared__ __align__(16) char shared[];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t head = int64_t{blockIdx.x} * kWarps + warp;
  if (head >= p.heads) {
    return;
  }
  auto* x = p.x + head * p.D;
  auto* y = p.y + head * p.D;
  auto* normed = reinterpret_cast<T*>(shared) + warp * p.D;
  int first = lane * kReads<T>;
  if (p.weight) {
    float squares = 0;
    for (int i = first; i < min(first + kReads<T>, p.D); i++) {
      squares = __fmaf_rn(static_cast<float>(x[i]), static_cast<float>(x[i]), squares);
    }
    float factor = normalizer(sum_over_warp(squares), p.D, p.eps);
    for (int i = first; i < min(first + kReads<T>, p.D); i++) {
      normed[i] = normalized(x[i], factor, p.weight[i]);
    }
  } else {
    for (int i = lane; i < p.D; i += 32) {
      normed[i] = x[i];
    }
  }
  __syncwarp();
  int64_t token = head / p.H;
  int offset = p.offsets[token / p.L * p.offset_stride];
  float position = p.scale * static_cast<float>(static_cast<uint32_t>(token % p.L) + offset);
  for (int i = lane; i < p.dims / 2; i += 32) {
    float inv_freq;
    if (p.freqs) {
      inv_freq = 1.0 / p.freqs[int64_t{i} * p.freqs_stride];
    } else {
      float d = static_cast<float>(i) / static_cast<float>(p.dims / 2);
      inv_freq = exp2(-d * p.log2_base);
    }
    float theta = position * inv_freq;
    float costheta = cos(theta);
    float sintheta = sin(theta);
    int at = p.traditional ? 2 * i : i;
    int other = p.traditional ? at + 1 : at + p.dims / 2;
    float x1 = static_cast<float>(normed[at]);
    float x2 = static_cast<float>(normed[other]);
    // contracted as the compiler contracts stock's
    float rx1 = x1 * costheta - x2 * sintheta;
    float rx2 = x1 * sintheta + x2 * costheta;
    y[at] = to<T>(rx1);
    y[other] = to<T>(rx2);
  }
  for (int i = p.dims + lane; i < p.D; i += 32) {
    y[i] = normed[i];
  }
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
    NormRope<T> parameters = {
        gpu_ptr<T>(x),
        has_weight ? gpu_ptr<T>(weight) : nullptr,
        gpu_ptr<int32_t>(offset),
        has_freqs ? gpu_ptr<float>(freqs) : nullptr,
        gpu_ptr<T>(out),
        L,
        H,
        D,
        dims,
        int64_t{B} * L * H,
        offset.size() > 1 ? static_cast<int>(offset.strides(0)) : 0,
        has_freqs ? static_cast<int>(freqs.strides(0)) : 0,
        traditional,
        eps,
        std::log2(base),
        scale};
    unsigned blocks = (parameters.heads + kWarps - 1) / kWarps;
    launch(encoder, qk_norm_rope<T>, blocks, kWarps * 32, kWarps * D * sizeof(T), {x, offset, weight, freqs}, {out},
           parameters);
  });
}

std::string refuse_on_cuda(const Request& r) {
  int64_t most = 32 * 16 / static_cast<int64_t>(r.dtype.size());
  if (r.integer("head_dim") > most) {
    return "stock norms heads of more than " + std::to_string(most) + " values in another order";
  }
  return on_cuda::refuse(r);
}

} // namespace

GpuBackend qk_norm_rope_gpu() {
  return gpu_backend<QKNormRope, eval>(refuse_on_cuda);
}

} // namespace zmlx
