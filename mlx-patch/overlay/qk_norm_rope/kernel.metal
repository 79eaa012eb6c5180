// y = rope(input_scale * rms_norm(x) * weight), heads before tokens, over heads of D numbers.
//
// Idea: a threadgroup has one head of one token, as in MLX's rms_single_row, leaves its normed numbers in threadgroup memory
// and rotates them in pairs as MLX's rope does. What the memory holds has been rounded, as it is on stock's way through memory.
// Any layout of x is read, so that the heads that are a part of a projection need no copy.
//
//   kernels   zmlx_qk_norm_rope_<type>, type float, float16_t, bfloat16_t
//   grid      threadgroups (tokens, heads, batch) of (32 * ceil(D / 128), 1, 1) threads
//   buffers   0 x  1 offset (int32)  2 weight [D]  3 freqs [dims / 2] (float)  4 y [batch, heads, tokens, D]
//             5 QkNormRopeParams (kernel_params.h); 2 and 3 where the params say that they are there
//   limits    D <= 1024

#include "mlx/backend/metal/kernels/utils.h"
#include "mlx/backend/metal/kernels/binary_ops.h"

#include "metal/norm.h"
#include "qk_norm_rope/kernel_params.h"

namespace zmlx {

static constexpr constant int longest_head = 1024;

// What the pair turns by at position 1.
METAL_FUNC float inverse_frequency(uint pair, uint pairs, const device float* freqs, constant QkNormRopeParams& params) {
  if (params.has_freqs != 0) {
    return 1.0 / (freqs[pair]);
  }
  const float d = static_cast<float>(pair) / static_cast<float>(pairs);
  return metal::exp2(-d * params.log2_base);
}

} // namespace zmlx

template <typename T>
[[kernel]] void zmlx_qk_norm_rope(
    const device T* x [[buffer(0)]],
    const device int* offset [[buffer(1)]],
    const device T* weight [[buffer(2)]],
    const device float* freqs [[buffer(3)]],
    device T* y [[buffer(4)]],
    constant zmlx::QkNormRopeParams& params [[buffer(5)]],
    uint3 tid [[threadgroup_position_in_grid]],
    uint3 grid [[threadgroups_per_grid]],
    uint lid [[thread_index_in_threadgroup]],
    uint3 group [[threads_per_threadgroup]],
    uint simd_gid [[simdgroup_index_in_threadgroup]],
    uint simd_lid [[thread_index_in_simdgroup]]) {
  using namespace zmlx;
  threadgroup T head[longest_head];
  threadgroup float sums[norm_simdgroups];
  threadgroup float inverse[1];
  const uint size = params.head_dim;
  const uint first = lid * norm_reads;
  x += tid.z * params.x_batch + tid.x * params.x_token + tid.y * params.x_head;
  y += (int64_t(tid.z * grid.y + tid.y) * grid.x + tid.x) * size;

  float values[norm_reads];
  for (uint i = 0; i < norm_reads; i++) {
    values[i] = first + i < size ? static_cast<float>(x[(first + i) * params.x_number]) : 0.0f;
  }
  float scale = 1;
  if (params.has_weight != 0) {
    scale = inverse_rms(values, params.eps, size, sums, inverse, simd_gid, simd_lid);
  }
  for (uint i = first; i < min(first + norm_reads, size); i++) {
    T value = static_cast<T>(values[i - first]);
    if (params.has_weight != 0) {
      value = weight[i] * static_cast<T>(values[i - first] * scale);
    }
    if (params.input_scale != 1 && i < uint(params.dims)) {
      value = Multiply()(value, static_cast<T>(params.input_scale));
    }
    head[i] = value;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const int start = offset[tid.z * params.offset_batch];
  const float position = params.single != 0 ? static_cast<float>(start) : static_cast<float>(tid.x + uint(start));
  const uint pairs = params.dims / 2;
  for (uint pair = lid; pair < pairs; pair += group.x) {
    const float L = params.scale * position;
    const float theta = L * inverse_frequency(pair, pairs, freqs, params);
    const float costheta = metal::fast::cos(theta);
    const float sintheta = metal::fast::sin(theta);
    const uint index_1 = params.traditional != 0 ? 2 * pair : pair;
    const uint index_2 = params.traditional != 0 ? index_1 + 1 : index_1 + pairs;
    const float x1 = static_cast<float>(head[index_1]);
    const float x2 = static_cast<float>(head[index_2]);
    const float rx1 = x1 * costheta - x2 * sintheta;
    const float rx2 = x1 * sintheta + x2 * costheta;
    y[index_1] = static_cast<T>(rx1);
    y[index_2] = static_cast<T>(rx2);
  }
  for (uint i = params.dims + lid; i < size; i += group.x) {
    y[i] = head[i];
  }
}

#ifndef ZMLX_NO_INSTANCES
// clang-format off
instantiate_kernel("zmlx_qk_norm_rope_float", zmlx_qk_norm_rope, float)
instantiate_kernel("zmlx_qk_norm_rope_float16_t", zmlx_qk_norm_rope, float16_t)
instantiate_kernel("zmlx_qk_norm_rope_bfloat16_t", zmlx_qk_norm_rope, bfloat16_t)
// clang-format on
#endif
