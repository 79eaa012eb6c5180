#include "cpu/glu.h"
#include "cpu/thread_pool.h"

namespace zmlx::cpu {

void glu_products(
    std::vector<Route>& routes,
    const GluWeights& weights,
    const Glu& glu,
    DType dtype,
    Precision precision,
    int64_t K,
    int64_t N,
    uint8_t* y) {
  int64_t item = size_of(dtype);
  auto runs = group_routes(routes);
  auto kernel = weights.gate.kernel(precision);
  int64_t work = 2 * routes.size() * N * K;
  // Runs that share a matrix find its block in cache where columns are outermost.
  bool one_matrix = runs.front().matrix == runs.back().matrix;
  bool transpose = weights.gate.at(0).transpose;
  int64_t columns = columns_per_task(
      N, runs.size(), work, transpose, want_whole_blocks(precision, routes.size(), runs.size()));
  if (!one_matrix) {
    columns = std::min(columns, kColumnBlock);
  }
  int64_t blocks = (N + columns - 1) / columns;
  int64_t num_runs = runs.size();

  parallel_for(num_runs * blocks, work, [&](int64_t task) {
    const auto& run = runs[one_matrix ? task % num_runs : task / blocks];
    int64_t n0 = (one_matrix ? task / num_runs : task % blocks) * columns;
    int64_t n1 = std::min(n0 + columns, N);
    int m = run.end - run.begin;
    const void* xs[kMaxRows];
    void* gates[kMaxRows];
    void* ups[kMaxRows];
    auto up_block = static_cast<uint8_t*>(thread_scratch(Scratch::Driver, m * columns * item));
    for (int i = 0; i < m; i++) {
      const auto& route = routes[run.begin + i];
      xs[i] = route.x;
      gates[i] = y + (route.out * N + n0) * item;
      ups[i] = up_block + i * columns * item;
    }
    kernel(weights.gate.at(run.matrix), n0, n1, m, xs, gates);
    kernel(weights.up.at(run.matrix), n0, n1, m, xs, ups);
    auto bias = [&](const std::optional<StridedBlocks>& biases) -> const void* {
      return biases ? biases->at(run.matrix) + n0 * item : nullptr;
    };
    const void* gate_bias = bias(weights.gate_bias);
    const void* up_bias = bias(weights.up_bias);
    for (int i = 0; i < m; i++) {
      glu_row(dtype, glu, {gates[i], ups[i], gate_bias, up_bias, gates[i]}, n1 - n0);
    }
  });
}

} // namespace zmlx::cpu
