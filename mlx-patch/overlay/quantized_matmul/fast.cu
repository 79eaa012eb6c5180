#include "quantized_matmul/fast.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "quantized_matmul/fast.cuh"

namespace zmlx::on_cuda {

using namespace mlx::core;

void launch_fast(
    Encoder& encoder,
    const array& x,
    const std::optional<HeldNorm>& norm,
    const std::vector<HeldMatrix>& matrices,
    const array* bias,
    int bits,
    int group_size) {
  int K = static_cast<int>(x.shape(-1));
  unsigned lines = x.size() / K;
  encoder.set_input_array(x);
  set_arrays(encoder, norm);
  if (bias) {
    encoder.set_input_array(*bias);
  }
  dispatch_quantized(x.dtype(), bits, group_size, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kBits = bits, kGroup = group;
    fast::Products<T> p = {};
    p.in = normed_of<T>(x, norm);
    p.bias = bias ? gpu_ptr<T>(*bias) : nullptr;
    p.K = K;
    int tiles = 0;
    for (size_t i = 0; i < kMostJoined; i++) {
      if (i < matrices.size()) {
        auto& m = matrices[i];
        for (auto* a : {&m.w, &m.scales, &m.biases}) {
          encoder.set_input_array(*a);
        }
        auto y = m.y;
        encoder.set_output_array(y);
        p.weights[i] = {gpu_ptr<char>(m.w), gpu_ptr<T>(m.scales), gpu_ptr<T>(m.biases)};
        p.y[i] = gpu_ptr<T>(y);
        p.rows[i] = y.size() / lines;
        tiles += (p.rows[i] + fast::kTileRows - 1) / fast::kTileRows;
      }
      p.ends[i] = tiles;
    }
    fast::Shape shape = fast::shape_of(tiles, K / (1024 / kBits), multiprocessors(encoder));
    p.parts = shape.parts;
    auto kernel = norm ? fast::fast_products<T, kBits, kGroup, true> : fast::fast_products<T, kBits, kGroup, false>;
    launch(encoder, kernel, dim3(shape.blocks, lines), shape.warps * 32, fast::Layout<kBits, kGroup>::bytes(K), {}, {}, p);
  });
}

} // namespace zmlx::on_cuda
