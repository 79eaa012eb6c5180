#include "quantized_matmul/heads.h"

#include "cuda/dispatch.h"
#include "quantized_matmul/heads.cuh"

namespace zmlx::on_cuda {

using namespace mlx::core;

namespace {

// Heads may lie apart: they are a part of wider ones.
bool are_vectors(const array& x) {
  return x.strides(3) == 1 && x.strides(1) % 8 == 0 && x.strides(1) < (1 << 24) &&
      reinterpret_cast<uintptr_t>(gpu_ptr<char>(x)) % 16 == 0;
}

} // namespace

void quantized_heads(const std::vector<array>& in, int bits, int group_size, array& out, Encoder& encoder) {
  bool as_it_is = are_vectors(in[0]);
  auto x = as_it_is ? in[0] : in_rows(in[0], encoder);
  auto w = in_rows(in[1], encoder), scales = in_rows(in[2], encoder), biases = in_rows(in[3], encoder);
  int K = x.shape(3), N = out.shape(3);
  unsigned heads = x.shape(1);
  dispatch_quantized(out.dtype(), bits, group_size, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    HeadProducts<T> parameters = {
        gpu_ptr<T>(x),
        {gpu_ptr<char>(w), gpu_ptr<T>(scales), gpu_ptr<T>(biases)},
        gpu_ptr<T>(out),
        K,
        N,
        as_it_is ? static_cast<int>(x.strides(1)) : K};
    // N is a multiple of 128
    int warps = kMostHeadWarps;
    while (warps > 1 && heads_shared_bytes<T, kBits, kGroup>(K, warps) > kMostShared / 2) {
      warps /= 2;
    }
    launch(encoder, on_cuda::quantized_heads<T, kBits, kGroup>, dim3(N / (16 * warps), heads), warps * 32,
           heads_shared_bytes<T, kBits, kGroup>(K, warps), {x, w, scales, biases}, {out}, parameters);
  });
}

} // namespace zmlx::on_cuda
