#include "quantized_matmul/held.h"

#include <algorithm>

#include "cuda/dispatch.h"

namespace zmlx::on_cuda {

using namespace mlx::core;

namespace {

// Rows of weights above which most wait for others to be done.
constexpr int64_t kMostHeldRows = 8192;

} // namespace

bool can_be_held(int64_t rows, int K, bool with_norm) {
  return rows % 2 == 0 && rows <= kMostHeldRows && K % 64 == 0 && K <= (with_norm ? 1 : 2) * kMostHeld;
}

void launch_held(
    Encoder& encoder,
    const array& x,
    const std::optional<HeldNorm>& norm,
    const std::vector<HeldMatrix>& matrices,
    int group_size) {
  int K = static_cast<int>(x.shape(-1));
  encoder.set_input_array(x);
  set_arrays(encoder, norm);
  dispatch_quantized(x.dtype(), 4, group_size, [&](auto type, auto bits, auto group) {
    using T = typename decltype(type)::type;
    constexpr int kGroup = group;
    if constexpr (bits == 4) {
      HeldProducts<T> p = {};
      p.in = normed_of<T>(x, norm);
      p.K = K;
      int rows = 0;
      for (size_t i = 0; i < kMostJoined; i++) {
        if (i < matrices.size()) {
          auto& m = matrices[i];
          for (auto* a : {&m.w, &m.scales, &m.biases}) {
            encoder.set_input_array(*a);
          }
          encoder.set_output_array(m.y);
          p.weights[i] = {gpu_ptr<char>(m.w), gpu_ptr<T>(m.scales), gpu_ptr<T>(m.biases)};
          auto y = m.y;
          p.y[i] = gpu_ptr<T>(y);
          rows += m.y.size();
        }
        p.ends[i] = rows;
      }
      int halves = K > kMostHeld ? 2 : 1;
      int warps = held_warps(rows, halves, multiprocessors(encoder));
      int of_block = warps / halves * 2;
      auto kernel = norm ? held_products<T, kGroup, 1, true>
          : halves == 2  ? held_products<T, kGroup, 2, false>
                         : held_products<T, kGroup, 1, false>;
      launch(encoder, kernel, (rows + of_block - 1) / of_block, warps * 32, held_vector_bytes<4>(K, norm.has_value()), {}, {}, p);
    }
  });
}

} // namespace zmlx::on_cuda
