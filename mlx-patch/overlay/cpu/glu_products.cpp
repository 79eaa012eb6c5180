#include "cpu/glu.h"
#include "cpu/thread_pool.h"

namespace zmlx::cpu {

ColumnWork glu_products(
    std::vector<Route> routes,
    std::shared_ptr<const GluWeights> weights,
    const Glu& glu,
    DType dtype,
    Precision precision,
    int64_t K,
    int64_t N,
    uint8_t* y) {
  auto runs = group_routes(routes);
  int64_t rows = routes.size();
  int64_t num_runs = runs.size();
  // Runs that share a matrix find its block in cache where columns are outermost.
  bool one_matrix = runs.front().matrix == runs.back().matrix;
  bool transpose = weights->gate.at(0).transpose;
  int64_t blocks = num_runs * ((N + kColumnBlock - 1) / kColumnBlock);
  // Half a block of gate and up each.
  bool slices = K > 0 && !one_matrix && want_slices(precision, transpose, rows, num_runs, blocks);
  auto product = [=, routes = std::move(routes), runs = std::move(runs), kernel = weights->gate.kernel(precision)](
                     int64_t index, int64_t n0, int64_t n1) {
    const auto& run = runs[index];
    int64_t item = size_of(dtype);
    int64_t bytes = (n1 - n0) * item;
    int m = run.end - run.begin;
    const void* xs[kMaxRows];
    void* gates[kMaxRows];
    void* ups[kMaxRows];
    auto up_block = static_cast<uint8_t*>(thread_scratch(Scratch::Driver, m * bytes));
    for (int i = 0; i < m; i++) {
      const auto& route = routes[run.begin + i];
      xs[i] = route.x;
      gates[i] = y + (route.out * N + n0) * item;
      ups[i] = up_block + i * bytes;
    }
    if (slices) {
      Slice parts[kColumnBlock / kTransposedBlock];
      int count = 0;
      auto add = [&](const QuantView& q, void* y) {
        for (int64_t n = n0; n < n1; n += kTransposedBlock) {
          parts[count++] = {q, n, std::min(n + kTransposedBlock, n1), xs[0], static_cast<uint8_t*>(y) + (n - n0) * item};
        }
      };
      add(weights->gate.at(run.matrix), gates[0]);
      add(weights->up.at(run.matrix), ups[0]);
      kernels().exact_slices(parts, count);
    } else {
      kernel(weights->gate.at(run.matrix), n0, n1, m, xs, gates);
      kernel(weights->up.at(run.matrix), n0, n1, m, xs, ups);
    }
    auto bias = [&](const std::optional<StridedBlocks>& biases) -> const void* {
      return biases ? biases->at(run.matrix) + n0 * item : nullptr;
    };
    const void* gate_bias = bias(weights->gate_bias);
    const void* up_bias = bias(weights->up_bias);
    for (int i = 0; i < m; i++) {
      glu_row(dtype, glu, {gates[i], ups[i], gate_bias, up_bias, gates[i]}, n1 - n0);
    }
  };
  return {
      .runs = num_runs,
      .columns = N,
      .work = 2 * rows * N * K,
      .transpose = transpose,
      .whole_blocks = !slices && want_whole_blocks(precision, rows, num_runs),
      .same_matrix = one_matrix,
      .most_columns = slices ? kColumnBlock / 2 : one_matrix ? kMostColumns : kColumnBlock,
      .narrow = want_narrow(precision, transpose, rows, num_runs),
      .product = std::move(product)};
}

} // namespace zmlx::cpu
